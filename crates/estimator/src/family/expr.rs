//! The small expression language in which `families/*.txt` states sizes and conditions.
//!
//! Integers and words only: `a * b`, `(l + 1) % n != 0`, `num_experts ?? 1`,
//! `at(layer_types, "mamba")`. This file owns the grammar; what a name means is decided by
//! [`super::eval`]. Precedence, loosest first: `??`, `or`, `and`, `not`, comparisons, `+ -`,
//! `* / %`.

/// One expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expr {
    Int(u64),
    Word(String),
    Name(String),
    Call(String, Vec<Expr>),
    Not(Box<Expr>),
    Binary(Operator, Box<Expr>, Box<Expr>),
}

/// A binary operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    Otherwise,
    Or,
    And,
    Equal,
    Unequal,
    Less,
    AtMost,
    Greater,
    AtLeast,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

/// The operators of each precedence level, loosest first; `not` binds between levels 2 and 3.
const LEVELS: [&[(&str, Operator)]; 6] = [
    &[("??", Operator::Otherwise)],
    &[("or", Operator::Or)],
    &[("and", Operator::And)],
    &[
        ("==", Operator::Equal),
        ("!=", Operator::Unequal),
        ("<=", Operator::AtMost),
        (">=", Operator::AtLeast),
        ("<", Operator::Less),
        (">", Operator::Greater),
    ],
    &[("+", Operator::Add), ("-", Operator::Subtract)],
    &[("*", Operator::Multiply), ("/", Operator::Divide), ("%", Operator::Remainder)],
];
const NOT_LEVEL: usize = 3;

/// Reads a whole expression; the error is a sentence about `text`.
pub(crate) fn parse(text: &str) -> Result<Expr, String> {
    let mut parser = Parser { rest: text.trim_start() };
    let expr = parser.level(0)?;
    if parser.rest.is_empty() {
        Ok(expr)
    } else {
        Err(format!("unexpected `{}` in `{text}`", parser.rest))
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn level(&mut self, level: usize) -> Result<Expr, String> {
        let Some(operators) = LEVELS.get(level) else { return self.primary() };
        if level == NOT_LEVEL && self.eat("not") {
            return Ok(Expr::Not(Box::new(self.level(level)?)));
        }
        let tighter = level.saturating_add(1);
        let mut left = self.level(tighter)?;
        while let Some((_, operator)) = operators.iter().find(|(token, _)| self.eat(token)) {
            let right = self.level(tighter)?;
            left = Expr::Binary(*operator, Box::new(left), Box::new(right));
        }
        Ok(left)
    }

    fn primary(&mut self) -> Result<Expr, String> {
        if self.eat("(") {
            let inner = self.level(0)?;
            return if self.eat(")") { Ok(inner) } else { Err(self.expected("`)`")) };
        }
        if self.eat("\"") {
            let end = self.rest.find('"').ok_or_else(|| self.expected("a closing quote"))?;
            let word = self.take(end).to_owned();
            self.eat("\"");
            return Ok(Expr::Word(word));
        }
        let end = self.rest.find(|c| !is_name(c)).unwrap_or(self.rest.len());
        let token = self.take(end);
        match token.chars().next() {
            None => Err(self.expected("a number, a name or `(`")),
            Some(c) if c.is_ascii_digit() => {
                token.parse().map(Expr::Int).map_err(|e| format!("`{token}`: {e}"))
            }
            Some(_) if self.eat("(") => Ok(Expr::Call(token.to_owned(), self.arguments()?)),
            Some(_) => Ok(Expr::Name(token.to_owned())),
        }
    }

    fn arguments(&mut self) -> Result<Vec<Expr>, String> {
        let mut arguments = Vec::new();
        while !self.eat(")") {
            if !arguments.is_empty() && !self.eat(",") {
                return Err(self.expected("`,` or `)`"));
            }
            arguments.push(self.level(0)?);
        }
        Ok(arguments)
    }

    /// Consumes `token` when it is next; a word only when it does not go on.
    fn eat(&mut self, token: &str) -> bool {
        let Some(after) = self.rest.strip_prefix(token) else { return false };
        if token.starts_with(char::is_alphabetic) && after.starts_with(is_name) {
            return false;
        }
        self.rest = if token == "\"" { after } else { after.trim_start() };
        true
    }

    fn take(&mut self, end: usize) -> &'a str {
        let (token, after) = self.rest.split_at_checked(end).unwrap_or((self.rest, ""));
        self.rest = if after.starts_with('"') { after } else { after.trim_start() };
        token
    }

    fn expected(&self, what: &str) -> String {
        format!("expected {what} before `{}`", self.rest)
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '.'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        fn show(expr: &Expr) -> String {
            match expr {
                Expr::Int(n) => n.to_string(),
                Expr::Word(w) => format!("'{w}'"),
                Expr::Name(n) => n.clone(),
                Expr::Call(f, a) => {
                    format!("{f}({})", a.iter().map(show).collect::<Vec<_>>().join(","))
                }
                Expr::Not(e) => format!("!{}", show(e)),
                Expr::Binary(op, a, b) => format!("({} {op:?} {})", show(a), show(b)),
            }
        }
        assert_eq!(parse(text).map(|e| show(&e)).unwrap_or_else(|e| e), expected, "{text}");
    }

    #[test]
    fn precedence_and_associativity() {
        check("1 + 2 * 3 - 4", "((1 Add (2 Multiply 3)) Subtract 4)");
        check("not a == 1 and b or c", "((!(a Equal 1) And b) Or c)");
        check("a ?? b + 1", "(a Otherwise (b Add 1))");
        check("(l + 1) % v.n != 0", "(((l Add 1) Remainder v.n) Unequal 0)");
        check("at(layer_types, \"*\", \"a b\")", "at(layer_types,'*','a b')");
        check("order", "order");
        check("notes", "notes");
    }

    #[test]
    fn says_what_is_wrong() {
        check("1 +", "expected a number, a name or `(` before ``");
        check("(1", "expected `)` before ``");
        check("1 2", "unexpected `2` in `1 2`");
        check("f(1 2)", "expected `,` or `)` before `2)`");
        check(
            "99999999999999999999",
            "`99999999999999999999`: number too large to fit in target type",
        );
    }
}
