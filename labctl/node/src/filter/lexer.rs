//! Words of a filter expression.
//!
//! Owns: where a word begins and ends, and the value of numbers, addresses and named constants. Does not
//! own: which word may follow which (`parser`).

use std::net::Ipv6Addr;

use super::error::Problem;

/// A word and where it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) offset: usize,
    pub(super) kind: Kind,
}

/// What a word is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A keyword or a name.
    Word(String),
    /// A word behind a backslash: never a keyword.
    Escaped(String),
    Number(u32),
    /// Two to four dotted numbers, left-aligned, and how many bits they say.
    Dotted {
        value: u32,
        bits: u32,
        text: String,
    },
    V6(Ipv6Addr),
    Mac([u8; 6]),
    Symbol(&'static str),
}

impl Kind {
    /// The word as it may stand in a message.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Word(w) | Self::Escaped(w) | Self::Dotted { text: w, .. } => format!("'{w}'"),
            Self::Number(n) => format!("'{n}'"),
            Self::V6(a) => format!("'{a}'"),
            Self::Mac(m) => {
                let [a, b, c, d, e, f] = m;
                format!("'{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}'")
            }
            Self::Symbol(s) => format!("'{s}'"),
        }
    }
}

/// Longer ones first: the first that fits is taken.
const SYMBOLS: [&str; 25] = [
    "&&", "||", "<<", ">>", "<=", ">=", "==", "!=", "(", ")", "[", "]", ":", "/", "+", "-", "*", "%", "&",
    "|", "^", "<", ">", "=", "!",
];

/// Named numbers: offsets and values of ICMP types and TCP flags.
const CONSTANTS: [(&str, u32); 43] = [
    ("icmptype", 0),
    ("icmpcode", 1),
    ("icmp-echoreply", 0),
    ("icmp-unreach", 3),
    ("icmp-sourcequench", 4),
    ("icmp-redirect", 5),
    ("icmp-echo", 8),
    ("icmp-routeradvert", 9),
    ("icmp-routersolicit", 10),
    ("icmp-timxceed", 11),
    ("icmp-paramprob", 12),
    ("icmp-tstamp", 13),
    ("icmp-tstampreply", 14),
    ("icmp-ireq", 15),
    ("icmp-ireqreply", 16),
    ("icmp-maskreq", 17),
    ("icmp-maskreply", 18),
    ("icmp6type", 0),
    ("icmp6code", 1),
    ("icmp6-destinationunreach", 1),
    ("icmp6-packettoobig", 2),
    ("icmp6-timeexceeded", 3),
    ("icmp6-parameterproblem", 4),
    ("icmp6-echo", 128),
    ("icmp6-echoreply", 129),
    ("icmp6-multicastlistenerquery", 130),
    ("icmp6-multicastlistenerreportv1", 131),
    ("icmp6-multicastlistenerdone", 132),
    ("icmp6-routersolicit", 133),
    ("icmp6-routeradvert", 134),
    ("icmp6-neighborsolicit", 135),
    ("icmp6-neighboradvert", 136),
    ("icmp6-redirect", 137),
    ("icmp6-routerrenum", 138),
    ("tcpflags", 13),
    ("tcp-fin", 0x01),
    ("tcp-syn", 0x02),
    ("tcp-rst", 0x04),
    ("tcp-push", 0x08),
    ("tcp-ack", 0x10),
    ("tcp-urg", 0x20),
    ("tcp-ece", 0x40),
    ("tcp-cwr", 0x80),
];

/// Splits an expression into words.
pub(super) fn lex(text: &str) -> Result<Vec<Token>, (usize, Problem)> {
    let mut tokens = Vec::new();
    let mut offset = 0;
    while let Some(first) = text[offset..].chars().next() {
        if first.is_whitespace() {
            offset += first.len_utf8();
            continue;
        }
        let (kind, len) = word(&text[offset..]).map_err(|problem| (offset, problem))?;
        tokens.push(Token { offset, kind });
        offset += len;
    }
    Ok(tokens)
}

/// The word at the start of `rest`, which is not empty, and its length.
fn word(rest: &str) -> Result<(Kind, usize), Problem> {
    let first = rest.chars().next().unwrap_or_default();
    if let Some(found) = mac(rest).or_else(|| v6(rest)) {
        return Ok(found);
    }
    if first.is_ascii_digit() {
        return number(rest);
    }
    if first.is_ascii_alphabetic() {
        let len = name_len(rest);
        let name = &rest[..len];
        let constant = CONSTANTS.iter().find(|(n, _)| *n == name);
        return Ok((constant.map_or_else(|| Kind::Word(name.to_owned()), |(_, v)| Kind::Number(*v)), len));
    }
    if let Some(name) = rest.strip_prefix('\\') {
        return match name_len(name) {
            0 => Err(Problem::Character(first)),
            len => Ok((Kind::Escaped(name[..len].to_owned()), len + 1)),
        };
    }
    match SYMBOLS.iter().find(|s| rest.starts_with(**s)) {
        Some(symbol) => Ok((Kind::Symbol(symbol), symbol.len())),
        None => Err(Problem::Character(first)),
    }
}

/// Length of the longest prefix of characters that `allowed` takes.
fn run(rest: &str, allowed: impl Fn(char) -> bool) -> usize {
    rest.find(|c| !allowed(c)).unwrap_or(rest.len())
}

fn name_len(rest: &str) -> usize {
    let len = run(rest, |c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    rest[..len].trim_end_matches(['-', '_']).len()
}

/// `0:1:2:3:4:5`, `0-1-2-3-4-5`, `0.1.2.3.4.5` or `0000.1111.2222`, hexadecimal.
fn mac(rest: &str) -> Option<(Kind, usize)> {
    let len = run(rest, |c| c.is_ascii_hexdigit() || matches!(c, ':' | '-' | '.'));
    let text = &rest[..len];
    let octets = |separator: char| -> Option<Vec<u8>> {
        let part = |p: &str| (1..=2).contains(&p.len()).then(|| u8::from_str_radix(p, 16).ok())?;
        text.split(separator).map(part).collect()
    };
    let quads = || -> Option<Vec<u8>> {
        let part = |p: &str| (p.len() == 4).then(|| u16::from_str_radix(p, 16).ok())?;
        let words: Option<Vec<u16>> = text.split('.').map(part).collect();
        Some(words?.into_iter().flat_map(u16::to_be_bytes).collect())
    };
    let bytes = [octets(':'), octets('-'), octets('.'), quads()].into_iter().flatten().find(|b| b.len() == 6);
    Some((Kind::Mac(bytes?.try_into().ok()?), len))
}

fn v6(rest: &str) -> Option<(Kind, usize)> {
    let len = run(rest, |c| c.is_ascii_hexdigit() || matches!(c, ':' | '.'));
    let address = rest[..len].parse().ok()?;
    Some((Kind::V6(address), len))
}

/// Decimal, `0x` hexadecimal or `0` octal, alone or dotted.
fn number(rest: &str) -> Result<(Kind, usize), Problem> {
    let len = run(rest, |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_'));
    let text = &rest[..len];
    let wrong = || Problem::Number(text.to_owned());
    if !text.contains('.') {
        return Ok((Kind::Number(value(text).ok_or_else(wrong)?), len));
    }
    let parts: Option<Vec<u8>> = text.split('.').map(|p| value(p).and_then(|v| v.try_into().ok())).collect();
    let parts = parts.filter(|p| p.len() <= 4).ok_or_else(wrong)?;
    let mut bytes = [0; 4];
    bytes[..parts.len()].copy_from_slice(&parts);
    let (value, bits) = (u32::from_be_bytes(bytes), 8 * parts.len() as u32);
    Ok((Kind::Dotted { value, bits, text: text.to_owned() }, len))
}

fn value(digits: &str) -> Option<u32> {
    let lower = digits.to_ascii_lowercase();
    match lower.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None if lower.len() > 1 && lower.starts_with('0') => u32::from_str_radix(&lower[1..], 8).ok(),
        None => lower.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<Kind> {
        lex(text).expect("these are words").into_iter().map(|t| t.kind).collect()
    }

    #[test]
    fn colons_in_brackets_are_not_addresses() {
        use Kind::{Number, Symbol, Word};
        let expected = [Word("ip".into()), Symbol("["), Number(2), Symbol(":"), Number(2), Symbol("]")];
        assert_eq!(kinds("ip[2:2]"), expected);
    }

    #[test]
    fn addresses_of_three_kinds() {
        assert_eq!(kinds("::1"), [Kind::V6(Ipv6Addr::LOCALHOST)]);
        assert_eq!(kinds("0-1-2-3-4-5"), [Kind::Mac([0, 1, 2, 3, 4, 5])]);
        assert_eq!(kinds("0011.2233.4455"), [Kind::Mac([0, 0x11, 0x22, 0x33, 0x44, 0x55])]);
        assert_eq!(kinds("10.1"), [Kind::Dotted { value: 0x0a01_0000, bits: 16, text: "10.1".into() }]);
    }

    #[test]
    fn numbers_of_three_bases() {
        assert_eq!(kinds("80 0x50 0120"), [80, 80, 80].map(Kind::Number));
        assert_eq!(lex("tcp 8x0"), Err((4, Problem::Number("8x0".into()))));
        assert_eq!(lex("tcp § 1"), Err((4, Problem::Character('§'))));
    }
}
