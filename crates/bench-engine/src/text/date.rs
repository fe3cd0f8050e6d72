//! The calendar date that a prompt carries.
//!
//! Always given by the caller: a prompt that reads the clock differs from day to day, and so do its token
//! count, its cache hits and its answers.

use std::fmt;
use std::str::FromStr;

use super::error::TextError;

/// A day of the Gregorian calendar, written `YYYY-MM-DD`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl Date {
    /// `None` if there is no such day.
    pub fn new(year: u16, month: u8, day: u8) -> Option<Self> {
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let days = match month {
            1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
            4 | 6 | 9 | 11 => 30,
            2 => 28 + u8::from(leap),
            _ => return None,
        };
        (1..=days).contains(&day).then_some(Self { year, month, day })
    }

    /// Python's `strftime` for midnight of the day. A directive that is not known stays as it is.
    pub fn format(self, pattern: &str) -> String {
        let mut out = String::new();
        let mut characters = pattern.chars();
        while let Some(character) = characters.next() {
            if character != '%' {
                out.push(character);
                continue;
            }
            let Some(directive) = characters.next() else {
                out.push('%');
                break;
            };
            match self.directive(directive) {
                Some(text) => out.push_str(&text),
                None if directive == '-' => {
                    let text = characters.next().and_then(|directive| self.directive(directive));
                    out.push_str(text.unwrap_or_default().trim_start_matches('0'));
                }
                None => out.extend(['%', directive]),
            }
        }
        out
    }

    fn directive(self, directive: char) -> Option<String> {
        let Self { year, month, day } = self;
        let month_name = MONTHS[usize::from(month) - 1];
        Some(match directive {
            'Y' => format!("{year:04}"),
            'y' => format!("{:02}", year % 100),
            'm' => format!("{month:02}"),
            'd' => format!("{day:02}"),
            'e' => format!("{day:2}"),
            'B' => month_name.to_owned(),
            'b' | 'h' => month_name[..3].to_owned(),
            'A' => self.weekday().to_owned(),
            'a' => self.weekday()[..3].to_owned(),
            'F' => format!("{year:04}-{month:02}-{day:02}"),
            'H' | 'M' | 'S' => "00".to_owned(),
            'I' => "12".to_owned(),
            'p' => "AM".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }

    /// By Sakamoto's method: days of the year's months before, counted from March.
    fn weekday(self) -> &'static str {
        const OFFSETS: [usize; 12] = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4];
        let year = usize::from(self.year) - usize::from(self.month < 3);
        let days = year + year / 4 - year / 100 + year / 400;
        DAYS[(days + OFFSETS[usize::from(self.month) - 1] + usize::from(self.day)) % 7]
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

impl FromStr for Date {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let bad = || TextError::BadDate { text: text.to_owned() };
        let mut parts = text.split('-');
        let mut number = |width: usize| {
            let part = parts.next().filter(|p| p.len() == width && p.bytes().all(|b| b.is_ascii_digit()));
            part.and_then(|part| part.parse::<u16>().ok()).ok_or_else(bad)
        };
        let (year, month, day) = (number(4)?, number(2)?, number(2)?);
        if parts.next().is_some() || year == 0 {
            return Err(bad());
        }
        Self::new(year, month as u8, day as u8).ok_or_else(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_as_python() {
        let date: Date = "2025-06-28".parse().unwrap();
        assert_eq!(date.format("%Y-%m-%d"), "2025-06-28");
        assert_eq!(date.format("%d %b %Y, %A"), "28 Jun 2025, Saturday");
        assert_eq!(date.format("%H:%M %% %-m %q"), "00:00 % 6 %q");
        assert_eq!("2000-02-29".parse::<Date>().unwrap().format("%a"), "Tue");
        assert_eq!("1900-01-01".parse::<Date>().unwrap().format("%a"), "Mon");
    }

    #[test]
    fn refuses_what_is_no_day() {
        for text in ["", "2025-6-28", "2025-02-29", "2025-13-01", "2025-01-01-01", "0000-01-01", "today"] {
            assert!(text.parse::<Date>().is_err(), "{text}");
        }
    }
}
