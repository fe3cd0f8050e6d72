//! How far a long command is, with running figures: a bar, a full screen, or a line now and then.
//!
//! What a run tells its observer goes into one state behind a lock; a thread of its own draws from it, ten
//! times a second at most. Nothing here is measured or stored: the running figures are for those who watch,
//! the report makes its own. Everything goes to standard error, so that output can be piped.

mod bar;
mod feed;
mod paint;
mod screen;
mod state;
pub(crate) mod terminal;
mod text;
mod waiting;

pub(crate) use paint::watch;
pub(crate) use waiting::Waiting;

use crate::CliError;
use crate::args::Ui;

/// How a run is shown, decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Bar,
    Screen,
    Plain,
    None,
}

impl Mode {
    /// What `ui` means where standard error is, or is not, a terminal.
    pub(crate) fn of(ui: Ui, terminal: bool) -> Result<Self, CliError> {
        let needs_terminal = |mode, name| {
            let hint = "is not one here: use --ui plain, or leave it out";
            let refused = || CliError::Usage(format!("--ui {name} needs a terminal; standard error {hint}"));
            if terminal { Ok(mode) } else { Err(refused()) }
        };
        match ui {
            Ui::Auto if terminal => Ok(Self::Bar),
            Ui::Auto | Ui::Plain => Ok(Self::Plain),
            Ui::Bar => needs_terminal(Self::Bar, "bar"),
            Ui::Tui => needs_terminal(Self::Screen, "tui"),
            Ui::None => Ok(Self::None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_that_cannot_be_shown_is_refused_and_auto_is_not() {
        for (ui, on_terminal, elsewhere) in [
            (Ui::Auto, Mode::Bar, Some(Mode::Plain)),
            (Ui::Bar, Mode::Bar, None),
            (Ui::Tui, Mode::Screen, None),
            (Ui::Plain, Mode::Plain, Some(Mode::Plain)),
            (Ui::None, Mode::None, Some(Mode::None)),
        ] {
            assert_eq!(Mode::of(ui, true).unwrap(), on_terminal);
            match (Mode::of(ui, false), elsewhere) {
                (Ok(mode), Some(expected)) => assert_eq!(mode, expected),
                (Err(error), None) => {
                    assert_eq!(error.exit_code(), 2);
                    assert!(error.to_string().contains("--ui plain"), "{error}");
                }
                (found, _) => panic!("{ui:?}: {found:?}"),
            }
        }
    }
}
