//! What a figure consists of, before it has a place on paper: the vocabulary between its page and the layout.
//!
//! A page fills a [`Chart`] with numbers and words and knows no pixel; `layout` knows no metric. Everything
//! is drawn in the order bands, rules, lines, bars, limits, intervals, markers, labels.

/// A figure before it has a place on paper.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Chart {
    /// One line that says what is shown; not drawn, since papers and pages have their own headings.
    pub title: String,
    pub x: Scale,
    pub y: Scale,
    /// Ranges of x behind everything; each different label is an entry of the legend.
    pub bands: Vec<Band>,
    /// Horizontal lines through the whole plot.
    pub rules: Vec<Rule>,
    pub series: Vec<Series>,
    /// Entries of the legend that belong to no single series, such as what a dash means, after those of the
    /// series.
    pub keys: Vec<Key>,
    /// Move points of several series at one x a little apart, so that their intervals can be told apart.
    /// Wrong where points are to lie on a line of theory.
    pub aside: bool,
    /// What a reader must know, in parts that belong together.
    pub caption: Vec<String>,
}

/// One axis.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Scale {
    /// With its unit.
    pub title: String,
    pub spread: Spread,
}

/// How numbers are spread over an axis.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) enum Spread {
    /// From zero with round ticks; logarithmic where the values spread over too many orders.
    #[default]
    Auto,
    /// From zero with round ticks, whatever the values; bars have no other honest axis.
    Zero,
    /// From the least to the largest value, round ticks: time, or a distribution's values. Logarithmic where
    /// they spread over too many orders.
    Tight,
    /// These two ends, round ticks: a share from 0 to 1.
    Fixed(f64, f64),
    /// Ticks at the values themselves: prompt lengths are chosen, not found.
    Grid,
    /// Whole numbers from 0 are these names: groups of bars.
    Names(Vec<String>),
}

/// Points that belong together.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    /// In the legend; without one it is not there, because a [`Key`] explains it.
    pub label: Option<String>,
    pub style: Style,
    pub mark: Mark,
    /// In ascending x where there is a line.
    pub points: Vec<Point>,
}

/// What tells series apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Style {
    pub ink: Ink,
    /// Index of the dashes of a line; 0 is a full line.
    pub dash: usize,
    /// Index of the outline of markers and of the hatching of bars.
    pub marker: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    /// Index into the colours that the colour-blind tell apart; the same model has the same in every figure.
    Color(usize),
    Black,
    Grey,
}

/// How the points of a series are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// A line through the points, with or without markers on them.
    Line { join: Join, markers: bool },
    /// One bar a point from zero, beside those of the other `slots`.
    Bar { slot: usize, slots: usize },
    /// A short level line across the bar of the same slot: a limit.
    Limit { slot: usize, slots: usize },
}

/// How a line goes from point to point; it leaves out what is INVALID or faint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Join {
    None,
    Straight,
    /// Level to the next point's x, then upright: nothing is claimed between points.
    Steps,
}

/// One value in a figure.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Point {
    pub x: f64,
    pub y: f64,
    /// 95 % interval of `y`; an end that n cannot bound is `None` and drawn as an arrow if the other is
    /// there.
    pub low: Option<f64>,
    pub high: Option<f64>,
    /// Likewise of `x`.
    pub x_low: Option<f64>,
    pub x_high: Option<f64>,
    /// INVALID values are drawn hollow.
    pub valid: bool,
    /// Of less weight than the others: a dominated point.
    pub faint: bool,
    /// Written beside a marker where there is room, or above a bar.
    pub label: String,
    /// What a pointer shows, one fact a line; empty: nothing, as for the points of a long line.
    pub tip: String,
    /// Id of the cell, for the tip.
    pub cell: Option<String>,
}

impl Point {
    /// A valid value without interval and words.
    pub(super) fn at(x: f64, y: f64) -> Self {
        Self {
            x,
            y,
            low: None,
            high: None,
            x_low: None,
            x_high: None,
            valid: true,
            faint: false,
            label: String::new(),
            tip: String::new(),
            cell: None,
        }
    }
}

/// A shaded range of x.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Band {
    pub from: f64,
    pub to: f64,
    /// Index of the shade, the same for equal labels.
    pub shade: usize,
    pub label: String,
}

/// A horizontal line at a value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rule {
    pub y: f64,
    /// In the legend, with its value: no text stands in the plot.
    pub label: String,
    pub style: Style,
}

/// An entry of the legend on its own.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Key {
    pub label: String,
    pub style: Style,
    pub sample: Sample,
}

/// What stands before an entry of the legend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sample {
    Line,
    LineAndMarker,
    Marker,
    Bar,
    Limit,
    /// Index of the shade.
    Band(usize),
}

impl Chart {
    /// Every point of every series.
    pub(super) fn points(&self) -> impl Iterator<Item = &Point> {
        self.series.iter().flat_map(|s| &s.points)
    }

    /// The legend: series, rules, bands, further keys.
    pub(super) fn legend(&self) -> Vec<Key> {
        let mut keys: Vec<Key> = self.series.iter().filter_map(Series::key).collect();
        let rule = |r: &Rule| Key { label: r.label.clone(), style: r.style, sample: Sample::Line };
        keys.extend(self.rules.iter().map(rule));
        for band in &self.bands {
            let sample = Sample::Band(band.shade);
            if !band.label.is_empty() && !keys.iter().any(|k| k.label == band.label && k.sample == sample) {
                let style = Style { ink: Ink::Grey, dash: 0, marker: 0 };
                keys.push(Key { label: band.label.clone(), style, sample });
            }
        }
        keys.extend(self.keys.iter().cloned());
        keys
    }
}

impl Series {
    fn key(&self) -> Option<Key> {
        let sample = match self.mark {
            Mark::Line { join: Join::None, .. } => Sample::Marker,
            Mark::Line { markers: true, .. } => Sample::LineAndMarker,
            Mark::Line { markers: false, .. } => Sample::Line,
            Mark::Bar { .. } => Sample::Bar,
            Mark::Limit { .. } => Sample::Limit,
        };
        Some(Key { label: self.label.clone()?, style: self.style, sample })
    }
}
