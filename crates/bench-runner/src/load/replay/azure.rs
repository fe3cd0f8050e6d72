//! Azure's CSV: a date with time of day, and lengths. 2023: `2023-11-16 18:15:46.6805900`, 2024 with an
//! offset: `2024-05-10 00:00:00.009930+00:00`.

use super::format::Recorded;
use crate::load::lines::{decimal_ns, tokens};
use crate::load::shown;

pub(super) const COLUMNS: [&str; 3] = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"];

pub(super) fn parse([at, prompt, output]: [&str; 3]) -> Result<Recorded, String> {
    let at_ns = timestamp_ns(at).ok_or_else(|| {
        format!("TIMESTAMP is {}: expected a date and time such as 2023-11-16 18:15:46.6805900", shown(at))
    })?;
    Ok(Recorded {
        at_ns,
        prompt_tokens: tokens(COLUMNS[1], prompt)?,
        output_tokens: tokens(COLUMNS[2], output)?,
        blocks: vec![],
    })
}

/// Nanoseconds since 1970 in UTC; a time without an offset is taken as UTC, since only differences count.
fn timestamp_ns(text: &str) -> Option<i64> {
    let (date, time) = text.split_once([' ', 'T'])?;
    let (time, offset_s) = split_offset(time)?;
    let mut date = date.split('-');
    let (year, month, day) = (digits(date.next()?, 4)?, digits(date.next()?, 2)?, digits(date.next()?, 2)?);
    let mut time = time.splitn(3, ':');
    let (hour, minute, second) = (digits(time.next()?, 2)?, digits(time.next()?, 2)?, time.next()?);
    let whole = second.split('.').next()?;
    let in_range = date.next().is_none()
        && (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && digits(whole, 2)? <= 60;
    if !in_range {
        return None;
    }
    let minutes = (days_since_1970(year, month, day) * 24 + hour) * 60 + minute;
    let seconds = minutes * 60 - offset_s;
    seconds.checked_mul(1_000_000_000)?.checked_add(decimal_ns(second, 9)?)
}

/// `18:15:46.68+01:00` as the time and 3,600 seconds.
fn split_offset(time: &str) -> Option<(&str, i64)> {
    if let Some(time) = time.strip_suffix('Z') {
        return Some((time, 0));
    }
    let Some(at) = time.rfind(['+', '-']) else {
        return Some((time, 0));
    };
    let (hours, minutes) = time[at + 1..].split_once(':')?;
    let seconds = digits(hours, 2)? * 3_600 + digits(minutes, 2)? * 60;
    Some((&time[..at], if time[at..].starts_with('-') { -seconds } else { seconds }))
}

/// A number of exactly `count` digits.
fn digits(text: &str, count: usize) -> Option<i64> {
    let all_digits = text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    if all_digits { text.parse().ok() } else { None }
}

fn days_in_month(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Years are counted from March, so that the leap day is a year's last (H. Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms", `days_from_civil`).
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Utc;

    #[test]
    fn timestamps_are_exact_to_100_ns() {
        assert_eq!(timestamp_ns("1970-01-01 00:00:00"), Some(0));
        assert_eq!(timestamp_ns("2023-11-16 18:15:46.6805900"), Some(1_700_158_546_680_590_000));
        assert_eq!(timestamp_ns("2024-05-10 00:00:00.009930+00:00"), Some(1_715_299_200_009_930_000));
        assert_eq!(timestamp_ns("2024-05-10T00:00:00Z"), Some(1_715_299_200_000_000_000));
        assert_eq!(timestamp_ns("2024-05-10 02:00:00+02:00"), Some(1_715_299_200_000_000_000));
        assert_eq!(timestamp_ns("2024-05-09 23:30:00-00:30"), Some(1_715_299_200_000_000_000));
    }

    #[test]
    fn dates_agree_with_the_calendar_that_names_runs() {
        for day in (0..60_000_u64).step_by(37) {
            let date = Utc::from_unix(day * 86_400);
            let text = format!("{:04}-{:02}-{:02} 00:00:00", date.year, date.month, date.day);
            assert_eq!(timestamp_ns(&text), Some(day as i64 * 86_400_000_000_000), "{text}");
        }
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for bad in [
            "",
            "2023-11-16",
            "2023-02-29 00:00:00",
            "2023-13-01 00:00:00",
            "2023-01-32 00:00:00",
            "2023-1-1 0:0:0",
            "2023-11-16 24:00:00",
            "2023-11-16 18:60:00",
            "2023-11-16 18:15:61",
            "2023-11-16 18:15",
            "2023-11-16-01 18:15:00",
            "2023-11-16 18:15:46.x",
            "2023-11-16 18:15:46+1",
            "9999-11-16 18:15:46",
            "12.5",
        ] {
            assert_eq!(timestamp_ns(bad), None, "{bad}");
        }
    }
}
