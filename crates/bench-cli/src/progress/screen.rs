//! The full screen: progress, figures, time to first token over time, cells, and what was said last.
//!
//! `draw` is a pure function of a snapshot; `Screen` puts it on the terminal and listens to keys.

use super::state::{CellLine, CellState, Level, Note, Quantiles, Snapshot};
use super::terminal::{self, Taken};
use super::text;
use crate::signal;
use bench_core::target::StopFlag;
use ratatui::Frame;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::Line;
use ratatui::widgets::{Axis, Block, Cell, Chart, Dataset, Gauge, GraphType, Paragraph, Row, Table};
use std::io::{self, Stderr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longest time for which an ended run waits for the keyboard.
const POLL: Duration = Duration::from_millis(20);

pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stderr>>,
    /// The keyboard can be read.
    keys: bool,
    _taken: Taken,
}

impl Screen {
    pub(super) fn open() -> io::Result<Self> {
        let taken = terminal::take()?;
        let terminal = Terminal::new(CrosstermBackend::new(io::stderr()))?;
        Ok(Self { terminal, keys: true, _taken: taken })
    }

    pub(super) fn draw(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.terminal.draw(|frame| draw(frame, snapshot)).map(|_| ())
    }

    /// Waits for the next frame and does what the keys say meanwhile.
    pub(super) fn wait(&mut self, frame: Duration, ended: &AtomicBool, stop: &StopFlag) {
        let until = Instant::now() + frame;
        while !ended.load(Ordering::SeqCst) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            if !self.keys {
                std::thread::park_timeout(left);
                continue;
            }
            match next_key(left.min(POLL)) {
                Ok(Some(key)) if stops(key) => signal::interrupt(stop),
                Ok(_) => {}
                // Without a keyboard signals still stop the run.
                Err(_) => self.keys = false,
            }
        }
    }
}

fn next_key(timeout: Duration) -> io::Result<Option<KeyEvent>> {
    if !event::poll(timeout)? {
        return Ok(None);
    }
    Ok(match event::read()? {
        Event::Key(key) => Some(key),
        _ => None,
    })
}

/// `q`, and Ctrl-C, which makes no signal while the terminal hands over every key.
fn stops(key: KeyEvent) -> bool {
    let ctrl_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind != KeyEventKind::Release && (ctrl_c || key.code == KeyCode::Char('q'))
}

/// One frame.
fn draw(frame: &mut Frame<'_>, s: &Snapshot) {
    let notes = (s.notes.len() as u16).clamp(1, 6) + 1;
    let [head, figures, middle, said, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(6),
        Constraint::Min(4),
        Constraint::Length(notes),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    header(frame, head, s);
    let [counts, latencies] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(figures);
    count_lines(frame, counts, s);
    latency_table(frame, latencies, s);
    let [chart, cells] = Layout::horizontal([Constraint::Fill(2), Constraint::Fill(3)]).areas(middle);
    ttft_chart(frame, chart, s);
    cell_table(frame, cells, &s.cells);
    note_lines(frame, said, &s.notes);
    let keys = if s.stopping { "stopping; q again: end at once" } else { "q: stop and keep what is done" };
    frame.render_widget(Line::from(keys).dim(), foot);
}

fn header(frame: &mut Frame<'_>, area: Rect, s: &Snapshot) {
    let [title, bar] = Layout::vertical([Constraint::Length(1), Constraint::Length(1)]).areas(area);
    frame.render_widget(Line::from(format!("{}  {}", s.study, text::phase(s))).bold(), title);
    let left = s.left.map_or(String::new(), |left| format!(", {} left", text::span(left)));
    let label = format!("{:.0} %, {} so far{left}", s.fraction * 100.0, text::span(s.elapsed));
    let gauge = Gauge::default().ratio(s.fraction.clamp(0.0, 1.0)).label(label);
    frame.render_widget(gauge.gauge_style(Style::new().fg(Color::Blue)), bar);
}

fn count_lines(frame: &mut Frame<'_>, area: Rect, s: &Snapshot) {
    let number = |n: Option<String>| n.unwrap_or_else(|| "-".to_owned());
    let failed = text::errors(s);
    let failed = if s.errors.is_empty() { failed.into() } else { failed.red() };
    let lines = vec![
        Line::from(format!("requests       {} of {}", s.requests_done, s.requests_total)),
        Line::from(format!("in flight      {}", number(s.in_flight.map(|n| n.to_string())))),
        Line::from(format!("output tok/s   {}", text::or_dash(s.output_tok_s))),
        Line::from(vec!["failed         ".into(), failed]),
    ];
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title("Run")), area);
}

fn latency_table(frame: &mut Frame<'_>, area: Rect, s: &Snapshot) {
    let row = |name: &'static str, q: &Quantiles| {
        let values = q.values_ms.map(text::or_dash);
        Row::new([name.to_owned()].into_iter().chain(values).chain([q.n.to_string()]))
    };
    let widths = [Constraint::Length(8), Constraint::Fill(1), Constraint::Fill(1), Constraint::Fill(1)];
    let widths = widths.into_iter().chain([Constraint::Fill(1)]);
    let head = Row::new(["ms", "p50", "p95", "p99", "n"]).dim();
    let table = Table::new([row("TTFT", &s.ttft), row("TPOT", &s.tpot)], widths).header(head);
    frame.render_widget(table.block(Block::bordered().title("Measured requests of this cell")), area);
}

fn ttft_chart(frame: &mut Frame<'_>, area: Rect, s: &Snapshot) {
    let block = Block::bordered().title("TTFT, mean and largest (ms)");
    let (Some(first), Some(last)) = (s.chart.first(), s.chart.last()) else {
        frame.render_widget(Paragraph::new("no request has ended yet").dim().block(block), area);
        return;
    };
    let of = |value: fn(&super::state::Slice) -> f64| -> Vec<(f64, f64)> {
        s.chart.iter().map(|slice| (slice.at_s, value(slice))).collect()
    };
    let (mean, largest) = (of(|slice| slice.mean_ms), of(|slice| slice.max_ms));
    let top = largest.iter().map(|p| p.1).fold(0.0, f64::max).max(1e-3);
    let (begin, end) = (first.at_s, last.at_s.max(first.at_s + 1e-3));
    let line = |data, color| {
        let set = Dataset::default().data(data).marker(Marker::Braille);
        set.graph_type(GraphType::Line).style(Style::new().fg(color))
    };
    let seconds = |at: f64| format!("{} s", text::short(at));
    let chart = Chart::new(vec![line(&largest, Color::Yellow), line(&mean, Color::Green)])
        .block(block)
        .x_axis(Axis::default().bounds([begin, end]).labels([seconds(begin), seconds(end)]))
        .y_axis(Axis::default().bounds([0.0, top]).labels(["0".to_owned(), text::short(top)]));
    frame.render_widget(chart, area);
}

/// As many cells as fit, the running one among them.
fn cell_table(frame: &mut Frame<'_>, area: Rect, cells: &[CellLine]) {
    // Two lines are borders, one is the head.
    let room = usize::from(area.height.saturating_sub(3));
    let running = cells.iter().position(|c| c.state == CellState::Running);
    // Where none runs, the first that is not done.
    let at = running.or_else(|| cells.iter().position(|c| c.state == CellState::Waiting)).unwrap_or(0);
    let first = at.saturating_sub(room / 2).min(cells.len().saturating_sub(room));
    let wide = usize::from(area.width.saturating_sub(2 + 7 + 9 + 6 + 8 + 4));
    let rows = cells.iter().skip(first).take(room).map(|cell| {
        let failed = Cell::from(cell.failed.to_string());
        Row::new([
            Cell::from(end_of(&cell.id, wide)),
            state(cell.state),
            Cell::from(format!("{}/{}", cell.done, cell.planned)),
            if cell.failed > 0 { failed.red() } else { failed },
            Cell::from(text::or_dash(cell.ttft_p50_ms)),
        ])
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Length(6),
        Constraint::Length(8),
    ];
    let head = Row::new(["cell", "state", "requests", "failed", "TTFT p50"]).dim();
    let title = format!("Cells {}", cells.len());
    frame.render_widget(Table::new(rows, widths).header(head).block(Block::bordered().title(title)), area);
}

/// The last `chars` of an id: what tells one cell from the next stands there.
fn end_of(id: &str, chars: usize) -> String {
    let length = id.chars().count();
    if length <= chars {
        return id.to_owned();
    }
    let kept: String = id.chars().skip(length + 1 - chars.max(1)).collect();
    format!("…{kept}")
}

fn state(state: CellState) -> Cell<'static> {
    match state {
        CellState::Waiting => Cell::from("waiting").dim(),
        CellState::Running => Cell::from("running").bold(),
        CellState::Between => Cell::from("begun"),
        CellState::Done => Cell::from("done").green(),
        CellState::Failed => Cell::from("failed").red(),
    }
}

/// The last notes, the newest below.
fn note_lines(frame: &mut Frame<'_>, area: Rect, notes: &[Note]) {
    let block = Block::new().borders(ratatui::widgets::Borders::TOP).title("Warnings and failures");
    let room = usize::from(block.inner(area).height);
    let shown = &notes[notes.len().saturating_sub(room)..];
    let lines: Vec<Line<'_>> = shown.iter().map(note_line).collect();
    let lines = if lines.is_empty() { vec![Line::from("none").dim()] } else { lines };
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn note_line(note: &Note) -> Line<'_> {
    let times = if note.times > 1 { format!(" (x{})", note.times) } else { String::new() };
    let text = format!("{:>9}  {}{times}", text::span(note.at), text::said(note.level, &note.text));
    match note.level {
        Level::Info => Line::from(text),
        Level::Warning => Line::from(text).yellow(),
        Level::Failure => Line::from(text).red(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::tests::{busy, fresh};
    use super::*;
    use ratatui::backend::TestBackend;
    use std::fmt::Write as _;

    fn frame(s: &Snapshot, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, s)).unwrap();
        let buffer = terminal.backend().buffer();
        let mut text = String::new();
        for y in 0..height {
            let line: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }

    #[test]
    fn a_busy_run_is_shown_whole() {
        assert_eq!(frame(&busy(), 100, 26), include_str!("screen/busy.txt"));
    }

    #[test]
    fn a_run_that_begins_has_no_figures() {
        assert_eq!(frame(&fresh(), 80, 20), include_str!("screen/fresh.txt"));
    }

    #[test]
    fn no_size_is_too_small_or_too_large() {
        for width in [1, 2, 7, 20, 79, 300] {
            for height in [1, 2, 3, 5, 12, 100] {
                for snapshot in [fresh(), busy()] {
                    assert_eq!(frame(&snapshot, width, height).lines().count(), usize::from(height));
                }
            }
        }
    }

    #[test]
    fn many_cells_are_shown_around_the_running_one() {
        let mut s = busy();
        let waiting = s.cells[2].clone();
        s.cells.extend((0..60).map(|i| CellLine { id: format!("cell-{i}"), ..waiting.clone() }));
        s.cells[1].state = CellState::Done;
        s.cells[40].state = CellState::Running;
        let text = frame(&s, 100, 26);
        assert!(text.contains("Cells 63") && text.contains("cell-37") && !text.contains("cell-20"), "{text}");
    }

    #[test]
    fn q_and_ctrl_c_stop_and_nothing_else_does() {
        let key = |c, modifiers| KeyEvent::new(KeyCode::Char(c), modifiers);
        assert!(stops(key('q', KeyModifiers::NONE)) && stops(key('c', KeyModifiers::CONTROL)));
        assert!(!stops(key('c', KeyModifiers::NONE)) && !stops(key('x', KeyModifiers::CONTROL)));
        let released = KeyEvent::new_with_kind(KeyCode::Char('q'), KeyModifiers::NONE, KeyEventKind::Release);
        assert!(!stops(released) && !stops(KeyEvent::new(KeyCode::Esc, KeyModifiers::NONE)));
    }
}
