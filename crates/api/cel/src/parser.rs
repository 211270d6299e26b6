//! Tokens into a tree, by precedence; macros are expanded on the way.
//!
//! Source: the CEL language definition, cel-go `parser`.

use crate::ast::{Entry, Expr, Kind, Literal, StructField};
use crate::error::{CompileError, Issue};
use crate::lexer::{self, RESERVED, Token};

/// As cel-go: nesting beyond this is refused.
const DEPTH_MAX: usize = 250;

pub struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    ids: usize,
    depth: usize,
}

type Parsed<T = Expr> = Result<T, Issue>;

/// Functions whose names contain a dot.
fn is_namespaced(name: &str) -> bool {
    crate::declarations::is_namespaced(name)
}

/// Reads an expression. The result's ids are smaller than the second value.
pub fn parse(source: &str) -> Result<(Expr, usize), CompileError> {
    let refuse = |issue| CompileError { source: source.to_owned(), issues: vec![issue] };
    let tokens = lexer::tokens(source).map_err(refuse)?;
    let mut parser = Parser { tokens, at: 0, ids: 0, depth: 0 };
    let expr = parser.expr().and_then(|expr| match parser.peek() {
        Token::End => Ok(expr),
        _ => Err(parser.unexpected("<EOF>")),
    });
    expr.map(|expr| (expr, parser.ids)).map_err(refuse)
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::End, |(_, token)| token)
    }
    fn position(&self) -> usize {
        self.tokens.get(self.at).map_or(0, |(at, _)| *at)
    }
    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }
    fn is(&self, sign: &str) -> bool {
        matches!(self.peek(), Token::Sign(found) if *found == sign)
    }
    fn take(&mut self, sign: &str) -> bool {
        let found = self.is(sign);
        self.at += usize::from(found);
        found
    }
    fn expect(&mut self, sign: &str) -> Parsed<()> {
        if self.take(sign) { Ok(()) } else { Err(self.unexpected(&format!("'{sign}'"))) }
    }

    fn unexpected(&self, wanted: &str) -> Issue {
        let found = match self.peek() {
            Token::End => "<EOF>".to_owned(),
            Token::Ident(name) | Token::Quoted(name) => name.clone(),
            Token::Sign(sign) => (*sign).to_owned(),
            Token::Literal(Literal::String(text)) => format!("{text:?}"),
            Token::Literal(Literal::Int(number)) => number.to_string(),
            Token::Literal(literal) => format!("{literal:?}"),
            Token::IntMin => "9223372036854775808".to_owned(),
        };
        Issue { at: self.position(), message: format!("Syntax error: mismatched input '{found}' expecting {wanted}") }
    }

    pub fn make(&mut self, at: usize, kind: Kind) -> Expr {
        let id = self.ids;
        self.ids += 1;
        Expr { id, at, kind }
    }
    pub fn call(&mut self, at: usize, function: &str, args: Vec<Expr>) -> Expr {
        self.make(at, Kind::Call { function: function.into(), target: None, args })
    }
    pub fn ident(&mut self, at: usize, name: &str) -> Expr {
        self.make(at, Kind::Ident(name.into()))
    }
    pub fn literal(&mut self, at: usize, literal: Literal) -> Expr {
        self.make(at, Kind::Literal(literal))
    }

    fn expr(&mut self) -> Parsed {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Issue { at: self.position(), message: format!("max recursion depth exceeded: {DEPTH_MAX}") });
        }
        let condition = self.or()?;
        let at = self.position();
        let expr = if self.take("?") {
            let truthy = self.or()?;
            self.expect(":")?;
            let falsy = self.expr()?;
            self.call(at, "_?_:_", vec![condition, truthy, falsy])
        } else {
            condition
        };
        self.depth -= 1;
        Ok(expr)
    }

    fn or(&mut self) -> Parsed {
        self.chain("||", "_||_", Self::and)
    }
    fn and(&mut self) -> Parsed {
        self.chain("&&", "_&&_", Self::relation)
    }

    /// cel-go balances long chains; so does this, which keeps evaluation shallow.
    fn chain(&mut self, sign: &str, function: &str, inner: fn(&mut Self) -> Parsed) -> Parsed {
        let mut terms = vec![inner(self)?];
        let mut places = Vec::new();
        while self.is(sign) {
            places.push(self.position());
            self.at += 1;
            terms.push(inner(self)?);
        }
        Ok(self.balance(function, terms, &places))
    }

    fn balance(&mut self, function: &str, mut terms: Vec<Expr>, places: &[usize]) -> Expr {
        if terms.len() <= 1 {
            return terms.pop().unwrap_or_else(|| self.literal(0, Literal::Null));
        }
        let middle = terms.len().div_ceil(2);
        let right = terms.split_off(middle);
        let at = places.get(middle - 1).copied().unwrap_or_default();
        let left = self.balance(function, terms, places.get(..middle - 1).unwrap_or_default());
        let right = self.balance(function, right, places.get(middle..).unwrap_or_default());
        self.call(at, function, vec![left, right])
    }

    fn relation(&mut self) -> Parsed {
        const OPERATORS: [(&str, &str); 7] =
            [("<", "_<_"), ("<=", "_<=_"), (">", "_>_"), (">=", "_>=_"), ("==", "_==_"), ("!=", "_!=_"), ("in", "@in")];
        self.binary(&OPERATORS, Self::sum)
    }
    fn sum(&mut self) -> Parsed {
        self.binary(&[("+", "_+_"), ("-", "_-_")], Self::product)
    }
    fn product(&mut self) -> Parsed {
        self.binary(&[("*", "_*_"), ("/", "_/_"), ("%", "_%_")], Self::unary)
    }

    fn binary(&mut self, operators: &[(&str, &str)], inner: fn(&mut Self) -> Parsed) -> Parsed {
        let mut left = inner(self)?;
        let mut length = 0;
        loop {
            let Some((_, function)) = operators.iter().find(|(sign, _)| self.is(sign)) else {
                return Ok(left);
            };
            let at = self.position();
            length += 1;
            if length > DEPTH_MAX {
                return Err(Issue { at, message: format!("max recursion depth exceeded: {DEPTH_MAX}") });
            }
            self.at += 1;
            let right = inner(self)?;
            left = self.call(at, function, vec![left, right]);
        }
    }

    fn unary(&mut self) -> Parsed {
        let at = self.position();
        let sign = match self.peek() {
            Token::Sign(sign @ ("!" | "-")) => *sign,
            _ => return self.member(),
        };
        let mut count = 0;
        while self.take(sign) {
            count += 1;
        }
        if sign == "-" && count % 2 == 1 {
            // A negative number is one literal.
            let negative = match self.peek() {
                Token::IntMin => Some(Literal::Int(i64::MIN)),
                Token::Literal(Literal::Int(number)) => Some(Literal::Int(-number)),
                Token::Literal(Literal::Double(number)) => Some(Literal::Double(-number)),
                _ => None,
            };
            if let Some(literal) = negative {
                self.at += 1;
                let expr = self.literal(at, literal);
                return self.postfix(expr);
            }
        }
        let inner = self.member()?;
        let function = if sign == "!" { "!_" } else { "-_" };
        Ok(if count % 2 == 1 { self.call(at, function, vec![inner]) } else { inner })
    }

    fn member(&mut self) -> Parsed {
        let primary = self.primary()?;
        self.postfix(primary)
    }

    fn postfix(&mut self, mut expr: Expr) -> Parsed {
        let mut length = 0;
        loop {
            let at = self.position();
            length += 1;
            if length > DEPTH_MAX {
                return Err(Issue { at, message: format!("max recursion depth exceeded: {DEPTH_MAX}") });
            }
            if self.take(".") {
                let optional = self.take("?");
                let field_at = self.position();
                let (name, quoted) = match self.next() {
                    Token::Ident(name) => (name, false),
                    Token::Quoted(name) => (name, true),
                    Token::Sign("in") => ("in".into(), false),
                    _ => {
                        self.at -= 1;
                        return Err(self.unexpected("IDENTIFIER"));
                    }
                };
                if !quoted && !optional && self.is("(") {
                    let open = self.position();
                    self.at += 1;
                    let args = self.arguments(")")?;
                    expr = self.method(open, field_at, expr, &name, args)?;
                    continue;
                }
                expr = self.make(at, Kind::Select { operand: Box::new(expr), field: name, test: false, optional });
            } else if self.is("[") || self.is("[?") {
                let optional = self.is("[?");
                self.at += 1;
                let index = self.expr()?;
                self.expect("]")?;
                expr = self.call(at, if optional { "_[?_]" } else { "_[_]" }, vec![expr, index]);
            } else if self.is("{")
                && let Some(name) = expr.qualified()
            {
                expr = self.structure(at, name)?;
            } else {
                return Ok(expr);
            }
        }
    }

    fn method(&mut self, at: usize, _field_at: usize, target: Expr, name: &str, args: Vec<Expr>) -> Parsed {
        if let Some(namespace) = target.qualified() {
            let full = format!("{namespace}.{name}");
            if full == "cel.bind" && args.len() == 3 {
                return crate::macros::bind(self, at, args);
            }
            if is_namespaced(&full) {
                return Ok(self.call(at, &full, args));
            }
        }
        crate::macros::method(self, at, target, name, args)
    }

    fn arguments(&mut self, end: &'static str) -> Parsed<Vec<Expr>> {
        let mut args = Vec::new();
        if self.take(end) {
            return Ok(args);
        }
        loop {
            args.push(self.expr()?);
            if self.take(",") {
                continue;
            }
            self.expect(end)?;
            return Ok(args);
        }
    }

    fn primary(&mut self) -> Parsed {
        let at = self.position();
        match self.next() {
            Token::Literal(literal) => Ok(self.literal(at, literal)),
            Token::IntMin => Err(Issue { at, message: "invalid int literal".into() }),
            Token::Sign("(") => {
                let expr = self.expr()?;
                self.expect(")")?;
                Ok(expr)
            }
            Token::Sign("[") => self.list(at),
            Token::Sign("[?") => {
                // `[?x]` begins a list with an optional item.
                let first = self.expr()?;
                self.list_rest(at, vec![(first, true)])
            }
            Token::Sign("{") => self.map(at),
            Token::Sign(".") => match self.next() {
                Token::Ident(name) => self.named(at, name),
                _ => {
                    self.at -= 1;
                    Err(self.unexpected("IDENTIFIER"))
                }
            },
            Token::Ident(name) => self.named(at, name),
            _ => {
                self.at -= 1;
                Err(self.unexpected(
                    "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}",
                ))
            }
        }
    }

    fn named(&mut self, at: usize, name: String) -> Parsed {
        if RESERVED.contains(&name.as_str()) {
            return Err(Issue { at, message: format!("reserved identifier: {name}") });
        }
        if !self.is("(") {
            return Ok(self.ident(at, &name));
        }
        let open = self.position();
        self.at += 1;
        let args = self.arguments(")")?;
        if name == "has" && args.len() == 1 {
            return crate::macros::has(self, open, args);
        }
        Ok(self.call(open, &name, args))
    }

    fn list(&mut self, at: usize) -> Parsed {
        if self.take("]") {
            return Ok(self.make(at, Kind::List(Vec::new())));
        }
        let optional = self.take("?");
        let first = self.expr()?;
        self.list_rest(at, vec![(first, optional)])
    }

    fn list_rest(&mut self, at: usize, mut items: Vec<(Expr, bool)>) -> Parsed {
        while self.take(",") {
            if self.is("]") {
                break;
            }
            let optional = self.take("?");
            items.push((self.expr()?, optional));
        }
        self.expect("]")?;
        Ok(self.make(at, Kind::List(items)))
    }

    fn map(&mut self, at: usize) -> Parsed {
        let mut entries = Vec::new();
        while !self.take("}") {
            let optional = self.take("?");
            let key = self.expr()?;
            self.expect(":")?;
            entries.push(Entry { key, value: self.expr()?, optional });
            if !self.take(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(self.make(at, Kind::Map(entries)))
    }

    fn structure(&mut self, at: usize, name: String) -> Parsed {
        self.expect("{")?;
        let mut fields = Vec::new();
        while !self.take("}") {
            let optional = self.take("?");
            let place = self.position();
            let field = match self.next() {
                Token::Ident(field) | Token::Quoted(field) => field,
                _ => {
                    self.at -= 1;
                    return Err(self.unexpected("IDENTIFIER"));
                }
            };
            self.expect(":")?;
            fields.push(StructField { name: field, at: place, value: self.expr()?, optional });
            if !self.take(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(self.make(at, Kind::Struct { name, fields }))
    }
}
