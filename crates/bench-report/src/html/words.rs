//! Words of the page: lists, counts, numbers as they are set, paths as links.
//!
//! It escapes nothing: that is done once, by the template.

use crate::round::Rounded;
use std::fmt::Write as _;

/// Control characters and the line breaks of Unicode become blanks, and marks that turn the direction of text around
/// are left out, so that a name cannot reorder what stands beside it.
pub(super) fn clean(text: &str) -> String {
    let blank = |c: char| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') { ' ' } else { c };
    text.chars().filter(|c| !turns(*c)).map(blank).collect()
}

/// Marks, embeddings, overrides and isolates of direction.
pub(super) fn turns(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `a, b and c`.
pub(super) fn list<T: AsRef<str>>(items: &[T]) -> String {
    match items {
        [] => String::new(),
        [one] => one.as_ref().to_owned(),
        [first @ .., last] => {
            let first: Vec<&str> = first.iter().map(AsRef::as_ref).collect();
            format!("{} and {}", first.join(", "), last.as_ref())
        }
    }
}

/// `1 cell`, `6 cells`.
pub(super) fn count(n: usize, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{} {one}s", grouped(&n.to_string())) }
}

/// Numbers of a grid: all of them, or how many between which.
pub(super) fn grid_axis(mut values: Vec<u32>) -> String {
    values.sort_unstable();
    values.dedup();
    match values.as_slice() {
        [] => String::new(),
        [low, .., high] if values.len() > 8 => format!("{} lengths from {low} to {high}", values.len()),
        all => list(&all.iter().map(ToString::to_string).collect::<Vec<_>>()),
    }
}

/// A number as it is set: a minus sign that is one, and groups of three digits from five digits on.
pub(super) fn grouped(number: &str) -> String {
    let (sign, digits) = number.strip_prefix('-').map_or(("", number), |digits| ("\u{2212}", digits));
    let (whole, rest) = digits.split_at(digits.find('.').unwrap_or(digits.len()));
    let mut text = sign.to_owned();
    for (i, digit) in whole.chars().enumerate() {
        if whole.len() > 4 && i > 0 && (whole.len() - i).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text + rest
}

/// `[35.2, 36.7]`; a dash for an end that n cannot bound, nothing where there is no interval.
pub(super) fn interval(figure: &Rounded) -> String {
    let end = |end: &Option<String>| end.as_deref().map_or_else(|| "\u{2013}".to_owned(), grouped);
    figure.interval.as_ref().map_or_else(String::new, |(low, high)| format!("[{}, {}]", end(low), end(high)))
}

/// 72.7 million, 20.9 billion.
pub(super) fn parameters(n: u64) -> String {
    let (divisor, word) = if n >= 1_000_000_000 { (1e9, "billion") } else { (1e6, "million") };
    format!("{:.*} {word}", if n as f64 / divisor < 100.0 { 2 } else { 1 }, n as f64 / divisor)
}

/// MiB below one GiB, else GiB.
pub(super) fn bytes(n: u64) -> String {
    let mib = n as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.1} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}

/// A relative path as the value of a link: nothing stands in it that means anything in HTML or in an address.
pub(super) fn url_path(path: &str) -> String {
    let mut url = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                url.push(char::from(byte));
            }
            other => {
                let _ = write!(url, "%{other:02X}");
            }
        }
    }
    url
}

/// Words as one would type them into a shell.
pub(super) fn command_line(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    let quoted = words.iter().map(|word| {
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", clean(word).replace('\'', "'\\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// RFC 4648, for a picture inside of the page.
pub(super) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_lists_as_they_are_set() {
        for (number, expected) in [
            ("1234", "1234"),
            ("12345.5", "12\u{202f}345.5"),
            ("-1234567", "\u{2212}1\u{202f}234\u{202f}567"),
            ("0.00012345", "0.00012345"),
        ] {
            assert_eq!(grouped(number), expected);
        }
        assert_eq!(list(&["a", "b", "c"]), "a, b and c");
        assert_eq!((count(1, "cell"), count(12, "cell")), ("1 cell".into(), "12 cells".into()));
        assert_eq!(grid_axis(vec![512, 128, 128]), "128 and 512");
        assert_eq!(grid_axis((1..=20).collect()), "20 lengths from 1 to 20");
        assert_eq!(parameters(20_914_757_184), "20.91 billion");
    }

    #[test]
    fn nothing_hostile_is_left_in_links_and_commands() {
        assert_eq!(url_path("raw/a\"><b>/ä&#'"), "raw/a%22%3E%3Cb%3E/%C3%A4%26%23%27");
        assert_eq!(clean("a\u{202e}b\nc\u{2066}\u{2028}"), "ab c ");
        let words = ["ossbench", "run", "a b", "it's", ""].map(str::to_owned);
        assert_eq!(command_line(&words), "ossbench run 'a b' 'it'\\''s' ''");
    }

    #[test]
    fn base64_of_the_standard_s_examples() {
        for (plain, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }
}
