//! Formulas of derived columns: names of columns, numbers, `+ - * /` and parentheses.
//!
//! Evaluated over intervals, since each printed number stands for all that round to it: a derived column is
//! wrong only where no values behind the printed ones could give it.

/// Ends of an interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Interval {
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Interval {
    pub(super) fn exact(value: f64) -> Self {
        Self { low: value, high: value }
    }

    pub(super) fn around(value: f64, half: f64) -> Self {
        // Doubles printed in full were rounded too, in their sixteenth digit.
        let half = half.max(value.abs() * 1e-12);
        Self { low: value - half, high: value + half }
    }

    pub(super) fn middle(self) -> f64 {
        f64::midpoint(self.low, self.high)
    }

    pub(super) fn meets(self, other: Self) -> bool {
        self.low <= other.high && other.low <= self.high
    }

    fn hull(values: [f64; 4]) -> Option<Self> {
        let low = values.into_iter().fold(f64::INFINITY, f64::min);
        let high = values.into_iter().fold(f64::NEG_INFINITY, f64::max);
        (low.is_finite() && high.is_finite()).then_some(Self { low, high })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Formula {
    Number(f64),
    Column(String),
    Binary(char, Box<Formula>, Box<Formula>),
}

impl Formula {
    /// # Errors
    /// What stands where in the text that is no formula.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { tokens: tokens(text)?, at: 0 };
        if parser.tokens.len() > LONGEST {
            return Err(format!("a formula of {} parts; at most {LONGEST}", parser.tokens.len()));
        }
        let formula = parser.sum(0)?;
        match parser.tokens.get(parser.at) {
            None => Ok(formula),
            Some(token) => Err(format!("unexpected \"{token}\" in formula \"{text}\"")),
        }
    }

    /// Columns that it names.
    pub(super) fn columns(&self) -> Vec<&str> {
        match self {
            Self::Number(_) => Vec::new(),
            Self::Column(name) => vec![name],
            Self::Binary(_, a, b) => [a.columns(), b.columns()].concat(),
        }
    }

    /// `None` where a column has no value, or by division by what may be 0.
    pub(super) fn value(&self, column: &dyn Fn(&str) -> Option<Interval>) -> Option<Interval> {
        match self {
            Self::Number(value) => Some(Interval::exact(*value)),
            Self::Column(name) => column(name),
            Self::Binary(sign, a, b) => {
                let (a, b) = (a.value(column)?, b.value(column)?);
                match sign {
                    '+' => Some(Interval { low: a.low + b.low, high: a.high + b.high }),
                    '-' => Some(Interval { low: a.low - b.high, high: a.high - b.low }),
                    '*' => Interval::hull([a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high]),
                    _ if b.low <= 0.0 && b.high >= 0.0 => None,
                    _ => Interval::hull([a.low / b.low, a.low / b.high, a.high / b.low, a.high / b.high]),
                }
            }
        }
    }
}

fn tokens(text: &str) -> Result<Vec<String>, String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut joins = false;
    for c in text.chars() {
        let word = c.is_alphanumeric() || matches!(c, '_' | '.' | '%');
        if word && joins {
            if let Some(last) = tokens.last_mut() {
                last.push(c);
            }
        } else if word || "+-*/()".contains(c) {
            tokens.push(c.to_string());
        } else if !c.is_whitespace() {
            return Err(format!("unexpected '{c}' in formula \"{text}\""));
        }
        joins = word;
    }
    Ok(tokens)
}

/// Parts of a formula, and parentheses inside each other: far more than a column needs.
const LONGEST: usize = 256;
const DEEPEST: usize = 32;

struct Parser {
    tokens: Vec<String>,
    at: usize,
}

impl Parser {
    fn sum(&mut self, depth: usize) -> Result<Formula, String> {
        self.chain(depth, ["+", "-"], Self::product)
    }

    fn product(&mut self, depth: usize) -> Result<Formula, String> {
        self.chain(depth, ["*", "/"], Self::atom)
    }

    fn chain(
        &mut self,
        depth: usize,
        signs: [&str; 2],
        part: fn(&mut Self, usize) -> Result<Formula, String>,
    ) -> Result<Formula, String> {
        let mut formula = part(self, depth)?;
        while let Some(sign) = self.tokens.get(self.at).filter(|t| signs.contains(&t.as_str())) {
            let sign = sign.chars().next().unwrap_or('+');
            self.at += 1;
            formula = Formula::Binary(sign, Box::new(formula), Box::new(part(self, depth)?));
        }
        Ok(formula)
    }

    fn atom(&mut self, depth: usize) -> Result<Formula, String> {
        let token = self.tokens.get(self.at).cloned().ok_or("formula ends where a value is expected")?;
        self.at += 1;
        match token.as_str() {
            "(" if depth >= DEEPEST => Err(format!("more than {DEEPEST} parentheses inside each other")),
            "(" => {
                let inner = self.sum(depth + 1)?;
                let closed = self.tokens.get(self.at).is_some_and(|t| t == ")");
                self.at += 1;
                if closed { Ok(inner) } else { Err("a parenthesis is not closed".to_owned()) }
            }
            sign if "+-*/)".contains(sign) => Err(format!("\"{sign}\" where a value is expected")),
            word if word.starts_with(|c: char| c.is_ascii_digit() || c == '.') => {
                word.parse().map(Formula::Number).map_err(|_| format!("\"{word}\" is not a number"))
            }
            word => Ok(Formula::Column(word.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_follow_arithmetic() {
        let check = |text: &str, expected: f64| {
            let column = |name: &str| (name == "a_1").then_some(Interval::exact(6.0));
            assert_eq!(Formula::parse(text).unwrap().value(&column).unwrap().middle(), expected, "{text}");
        };
        check("a_1", 6.0);
        check("2 + a_1 * 3", 20.0);
        check("(2 + a_1) / 4 - 1", 1.0);
        check("10 - 3 - 2", 5.0);
        check("8 / 4 / 2", 1.0);
    }

    #[test]
    fn what_is_no_formula_is_said() {
        for (text, says) in [
            ("", "ends"),
            ("a +", "ends"),
            ("a b", "unexpected \"b\""),
            ("(a", "not closed"),
            ("a ^ 2", "unexpected '^'"),
            ("* a", "\"*\" where"),
            ("1.2.3", "not a number"),
            (&"(".repeat(100), "parentheses inside"),
            (&"a+".repeat(100_000), "at most 256"),
        ] {
            let error = Formula::parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn rounding_of_the_parts_is_carried_through() {
        let column = |name: &str| Some(Interval::around(if name == "a" { 3.6 } else { 2.0 }, 0.05));
        let of = |text: &str| Formula::parse(text).unwrap().value(&column).unwrap();
        let near = |got: f64, expected: f64| assert!((got - expected).abs() < 1e-9, "{got} {expected}");
        near(of("a / b").low, 3.55 / 2.05);
        near(of("a / b").high, 3.65 / 1.95);
        near(of("a - b").low, 1.5);
        let zero = |_: &str| Some(Interval::around(0.0, 0.5));
        assert_eq!(Formula::parse("1 / a").unwrap().value(&zero), None);
    }
}
