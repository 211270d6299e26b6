//! Text into tokens.

use std::sync::Arc;

use crate::ast::Literal;
use crate::error::Issue;

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    Ident(String),
    /// `` `a-b` ``: a field name that is no identifier.
    Quoted(String),
    Literal(Literal),
    /// An integer too large to be positive; legal only after a minus.
    IntMin,
    /// Operators and brackets.
    Sign(&'static str),
    End,
}

/// Words that may not be identifiers.
pub const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

const SIGNS: [&str; 29] = [
    "&&", "||", "==", "!=", "<=", ">=", "[?", "?", "<", ">", "+", "-", "*", "/", "%", "!", "(", ")", "[", "]", "{", "}", ",", ":", ".",
    "=", "&", "|", ";",
];

pub struct Lexer {
    text: Vec<char>,
    at: usize,
}

type Lexed = Result<(usize, Token), Issue>;

/// All tokens with their positions, the last one is [`Token::End`].
pub fn tokens(source: &str) -> Result<Vec<(usize, Token)>, Issue> {
    let mut lexer = Lexer { text: source.chars().collect(), at: 0 };
    let mut all = Vec::new();
    loop {
        let next = lexer.next()?;
        let end = next.1 == Token::End;
        all.push(next);
        if end {
            return Ok(all);
        }
    }
}

impl Lexer {
    fn peek(&self, ahead: usize) -> char {
        self.text.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn skip_space(&mut self) {
        loop {
            match self.peek(0) {
                ' ' | '\t' | '\n' | '\r' | '\u{c}' => self.at += 1,
                '/' if self.peek(1) == '/' => {
                    while self.at < self.text.len() && self.peek(0) != '\n' {
                        self.at += 1;
                    }
                }
                _ => return,
            }
        }
    }

    fn next(&mut self) -> Lexed {
        self.skip_space();
        let start = self.at;
        let Some(&first) = self.text.get(start) else {
            return Ok((start, Token::End));
        };
        if let Some((raw, bytes, skip)) = self.string_prefix() {
            self.at += skip;
            return self.string(start, raw, bytes);
        }
        if first.is_ascii_digit() || (first == '.' && self.peek(1).is_ascii_digit()) {
            return self.number(start);
        }
        if first.is_ascii_alphabetic() || first == '_' {
            while self.peek(0).is_ascii_alphanumeric() || self.peek(0) == '_' {
                self.at += 1;
            }
            let word: String = self.text[start..self.at].iter().collect();
            let token = match word.as_str() {
                "true" => Token::Literal(Literal::Bool(true)),
                "false" => Token::Literal(Literal::Bool(false)),
                "null" => Token::Literal(Literal::Null),
                "in" => Token::Sign("in"),
                _ => Token::Ident(word),
            };
            return Ok((start, token));
        }
        if first == '`' {
            return self.quoted(start);
        }
        let rest: String = self.text[start..].iter().take(2).collect();
        match SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            Some(sign) => {
                self.at += sign.len();
                Ok((start, Token::Sign(sign)))
            }
            None => Err(Issue { at: start, message: format!("Syntax error: token recognition error at: '{first}'") }),
        }
    }

    fn quoted(&mut self, start: usize) -> Lexed {
        self.at += 1;
        while self.peek(0).is_ascii_alphanumeric() || "_./- ".contains(self.peek(0)) && self.at < self.text.len() {
            self.at += 1;
        }
        if self.peek(0) != '`' || self.at == start + 1 {
            return Err(Issue { at: start, message: "Syntax error: token recognition error at: '`'".into() });
        }
        let name = self.text[start + 1..self.at].iter().collect();
        self.at += 1;
        Ok((start, Token::Quoted(name)))
    }

    /// (raw, bytes, length of the prefix) where a string begins here.
    fn string_prefix(&self) -> Option<(bool, bool, usize)> {
        let (mut raw, mut bytes, mut skip) = (false, false, 0);
        loop {
            match self.peek(skip) {
                '"' | '\'' => return Some((raw, bytes, skip)),
                'r' | 'R' if !raw => raw = true,
                'b' | 'B' if !bytes => bytes = true,
                _ => return None,
            }
            skip += 1;
        }
    }

    fn string(&mut self, start: usize, raw: bool, bytes: bool) -> Lexed {
        let quote = self.peek(0);
        let triple = self.peek(1) == quote && self.peek(2) == quote;
        self.at += if triple { 3 } else { 1 };
        let mut out: Vec<u8> = Vec::new();
        let unfinished = |at| Issue { at, message: "Syntax error: token recognition error: the string has no end".into() };
        loop {
            let Some(&c) = self.text.get(self.at) else { return Err(unfinished(start)) };
            if c == quote && (!triple || (self.peek(1) == quote && self.peek(2) == quote)) {
                self.at += if triple { 3 } else { 1 };
                break;
            }
            if c == '\n' && !triple {
                return Err(unfinished(start));
            }
            self.at += 1;
            if c == '\\' && !raw {
                self.escape(&mut out, bytes)
                    .ok_or_else(|| Issue { at: start, message: "invalid escape sequence in string literal".into() })?;
            } else {
                let c = if c == '\r' { '\n' } else { c };
                push(&mut out, c);
            }
        }
        let literal = match bytes {
            true => Literal::Bytes(out.into()),
            false => Literal::String(Arc::from(String::from_utf8_lossy(&out).into_owned())),
        };
        Ok((start, Token::Literal(literal)))
    }

    fn escape(&mut self, out: &mut Vec<u8>, bytes: bool) -> Option<()> {
        let c = *self.text.get(self.at)?;
        self.at += 1;
        let simple = match c {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' | '"' | '\'' | '`' | '?' => c as u8,
            _ => 0,
        };
        if simple != 0 {
            out.push(simple);
            return Some(());
        }
        let (length, radix, from) = match c {
            'x' | 'X' => (2, 16, self.at),
            'u' if !bytes => (4, 16, self.at),
            'U' if !bytes => (8, 16, self.at),
            '0'..='3' => (3, 8, self.at - 1),
            _ => return None,
        };
        let digits: String = self.text.get(from..from + length)?.iter().collect();
        let code = u32::from_str_radix(&digits, radix).ok()?;
        self.at = from + length;
        if bytes {
            out.push(u8::try_from(code).ok()?);
        } else {
            push(out, char::from_u32(code)?);
        }
        Some(())
    }

    fn number(&mut self, start: usize) -> Lexed {
        let hex = self.peek(0) == '0' && matches!(self.peek(1), 'x' | 'X');
        let mut double = false;
        if hex {
            self.at += 2;
            while self.peek(0).is_ascii_hexdigit() {
                self.at += 1;
            }
        } else {
            self.digits();
            if self.peek(0) == '.' && self.peek(1).is_ascii_digit() {
                double = true;
                self.at += 1;
                self.digits();
            }
            let signed = matches!(self.peek(1), '+' | '-') && self.peek(2).is_ascii_digit();
            if matches!(self.peek(0), 'e' | 'E') && (self.peek(1).is_ascii_digit() || signed) {
                double = true;
                self.at += 2;
                self.digits();
            }
        }
        let text: String = self.text[start..self.at].iter().collect();
        let digits = if hex { &text[2..] } else { text.as_str() };
        let radix = if hex { 16 } else { 10 };
        let invalid = |what: &str| Issue { at: start, message: format!("invalid {what} literal") };
        let literal = if double {
            Literal::Double(text.parse().map_err(|_| invalid("double"))?)
        } else if matches!(self.peek(0), 'u' | 'U') {
            self.at += 1;
            Literal::Uint(u64::from_str_radix(digits, radix).map_err(|_| invalid("uint"))?)
        } else {
            match u64::from_str_radix(digits, radix).map_err(|_| invalid("int"))? {
                minimum if minimum == 1 << 63 => return Ok((start, Token::IntMin)),
                number => Literal::Int(i64::try_from(number).map_err(|_| invalid("int"))?),
            }
        };
        Ok((start, Token::Literal(literal)))
    }

    fn digits(&mut self) {
        while self.peek(0).is_ascii_digit() {
            self.at += 1;
        }
    }
}

fn push(out: &mut Vec<u8>, c: char) {
    let mut buffer = [0; 4];
    out.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes());
}
