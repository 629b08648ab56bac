//! The grammar of filter expressions.
//!
//! Owns: which word may follow which, and what qualifiers mean for the number or address behind them. Does
//! not own: packet offsets (`lower`). It follows pcap-filter(7) and, where that is silent, libpcap's grammar.

use std::net::Ipv6Addr;

use super::ast::{AddressIn, Arith, Dir, Expr, Header, Join, Operator, Relation, Term, Version};
use super::error::Problem;
use super::lexer::{Kind, Token};

/// Deepest nesting; keeps the recursion of every later stage within any stack.
const MAX_DEPTH: usize = 100;
/// No constant offset reaches here; the kernel gives the last ones a meaning of their own.
const MAX_OFFSET: u32 = 1 << 18;
const ETHER_IP: u16 = 0x0800;
const ETHER_ARP: u16 = 0x0806;
const ETHER_RARP: u16 = 0x8035;
const ETHER_IP6: u16 = 0x86dd;

type Fault = (usize, Problem);
type Parsed<T> = Result<T, Fault>;

/// Reads a whole expression; `None` if it is empty. `end` is where the expression ends.
pub(super) fn parse(tokens: &[Token], end: usize) -> Parsed<Option<Expr>> {
    if tokens.is_empty() {
        return Ok(None);
    }
    let mut parser = Parser { tokens, position: 0, end, depth: 0 };
    let (expr, _) = parser.expression(None)?;
    match parser.peek() {
        None => Ok(Some(expr)),
        Some(_) => Err(parser.unexpected("'and', 'or' or the end")),
    }
}

/// Which protocol a qualifier names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Default,
    Link,
    Ip,
    Ip6,
    Arp,
    Rarp,
    Tcp,
    Udp,
    Sctp,
    /// A word that may stand alone or before brackets, but before no address or port.
    Other(&'static str),
}

impl Scope {
    fn name(self) -> &'static str {
        match self {
            Self::Default => "no protocol",
            Self::Link => "ether",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Arp => "arp",
            Self::Rarp => "rarp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Other(name) => name,
        }
    }
}

/// What kind of value follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// Nothing was said: an address.
    Default,
    Host,
    Net,
    Port,
    PortRange,
    Proto,
}

/// The words before a value. They carry over to a bare value behind the next `and` or `or`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Qualifiers {
    scope: Scope,
    dir: Option<Dir>,
    subject: Subject,
}

/// An expression, and the qualifiers that a bare value behind it would take over.
type Qualified = (Expr, Option<Qualifiers>);

struct Parser<'a> {
    tokens: &'a [Token],
    position: usize,
    end: usize,
    depth: usize,
}

impl Parser<'_> {
    fn peek_at(&self, ahead: usize) -> Option<&Kind> {
        self.tokens.get(self.position + ahead).map(|t| &t.kind)
    }

    fn peek(&self) -> Option<&Kind> {
        self.peek_at(0)
    }

    fn offset(&self) -> usize {
        self.tokens.get(self.position).map_or(self.end, |t| t.offset)
    }

    fn fault<T>(&self, problem: Problem) -> Parsed<T> {
        Err((self.offset(), problem))
    }

    fn unexpected(&self, expected: &'static str) -> Fault {
        let found = self.peek().map_or_else(|| "the end".to_owned(), Kind::describe);
        let problem = match self.peek() {
            Some(Kind::Word(word)) if is_unsupported(word) => Problem::Unsupported(word.clone()),
            Some(Kind::Word(word)) if !is_word(word) => Problem::Name(word.clone()),
            _ => Problem::Unexpected { found, expected },
        };
        (self.offset(), problem)
    }

    fn is_symbol(&self, symbol: &str) -> bool {
        matches!(self.peek(), Some(Kind::Symbol(s)) if *s == symbol)
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Some(Kind::Word(w)) if w == word)
    }

    /// Steps over one of these words or symbols.
    fn take(&mut self, spellings: &[&str]) -> bool {
        let found = match self.peek() {
            Some(Kind::Symbol(s)) => spellings.contains(s),
            Some(Kind::Word(w)) => spellings.contains(&w.as_str()),
            _ => false,
        };
        self.position += usize::from(found);
        found
    }

    fn need(&mut self, symbol: &'static str, expected: &'static str) -> Parsed<()> {
        if self.take(&[symbol]) { Ok(()) } else { Err(self.unexpected(expected)) }
    }

    fn deeper<T>(&mut self, inside: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == MAX_DEPTH {
            return self.fault(Problem::TooDeep);
        }
        self.depth += 1;
        let result = inside(self);
        self.depth -= 1;
        result
    }

    /// Terms joined by `and` and `or`, which bind equally and to the left.
    fn expression(&mut self, inherited: Option<Qualifiers>) -> Parsed<Qualified> {
        let (first, mut qualifiers) = self.term(inherited)?;
        let mut rest = Vec::new();
        while let Some(join) = self.join() {
            let (term, carried) = self.term(qualifiers)?;
            rest.push((join, term));
            qualifiers = carried;
        }
        Ok((chain(first, rest), qualifiers))
    }

    fn join(&mut self) -> Option<Join> {
        if self.take(&["and", "&&"]) {
            return Some(Join::And);
        }
        self.take(&["or", "||"]).then_some(Join::Or)
    }

    fn term(&mut self, inherited: Option<Qualifiers>) -> Parsed<Qualified> {
        self.deeper(|p| p.term_inside(inherited))
    }

    fn term_inside(&mut self, inherited: Option<Qualifiers>) -> Parsed<Qualified> {
        if self.take(&["not", "!"]) {
            let (expr, qualifiers) = self.term(inherited)?;
            return Ok((Expr::Not(Box::new(expr)), qualifiers));
        }
        if let Some(compare) = self.relation()? {
            return Ok((compare, None));
        }
        if self.take(&["("]) {
            let inside = self.expression(inherited)?;
            self.need(")", "')'")?;
            return Ok(inside);
        }
        if self.at_value() {
            let Some(qualifiers) = inherited else {
                let value = self.peek().map(Kind::describe).unwrap_or_default();
                return self.fault(Problem::Unqualified(value));
            };
            return Ok((self.value(qualifiers)?, Some(qualifiers)));
        }
        self.primitive()
    }

    fn at_value(&self) -> bool {
        matches!(
            self.peek(),
            Some(Kind::Number(_) | Kind::Dotted { .. } | Kind::V6(_) | Kind::Mac(_) | Kind::Escaped(_))
        )
    }

    /// A term that begins with a word.
    fn primitive(&mut self) -> Parsed<Qualified> {
        if let Some(term) = self.fixed_term()? {
            return Ok((Expr::Term(term), None));
        }
        let start = self.offset();
        let scope = self.scope();
        let dir = self.direction();
        let subject = self.subject();
        if scope == Scope::Default && dir.is_none() && subject.is_none() {
            return Err(self.unexpected("a term such as 'tcp', 'host 10.0.0.1' or 'port 80'"));
        }
        if dir.is_none() && subject.is_none() {
            return self.protocol_alone(scope, start);
        }
        let qualifiers = Qualifiers { scope, dir, subject: subject.unwrap_or(Subject::Default) };
        if self.take(&["("]) {
            let inside = self.value_list(qualifiers)?;
            self.need(")", "')'")?;
            return Ok((inside, Some(qualifiers)));
        }
        Ok((self.value(qualifiers)?, Some(qualifiers)))
    }

    /// `(80 or 443)` behind qualifiers.
    fn value_list(&mut self, qualifiers: Qualifiers) -> Parsed<Expr> {
        self.deeper(|p| {
            let first = p.listed_value(qualifiers)?;
            let mut rest = Vec::new();
            while let Some(join) = p.join() {
                rest.push((join, p.listed_value(qualifiers)?));
            }
            Ok(chain(first, rest))
        })
    }

    fn listed_value(&mut self, qualifiers: Qualifiers) -> Parsed<Expr> {
        self.deeper(|p| {
            if p.take(&["not", "!"]) {
                return Ok(Expr::Not(Box::new(p.listed_value(qualifiers)?)));
            }
            if p.take(&["("]) {
                let inside = p.value_list(qualifiers)?;
                p.need(")", "')'")?;
                return Ok(inside);
            }
            p.value(qualifiers)
        })
    }

    /// Terms whose words take no qualifier.
    fn fixed_term(&mut self) -> Parsed<Option<Term>> {
        let Some(Kind::Word(word)) = self.peek() else { return Ok(None) };
        let next_is = |word: &str| matches!(self.peek_at(1), Some(Kind::Word(w)) if w == word);
        let (term, words) = match word.as_str() {
            "inbound" => (Term::Inbound, 1),
            "outbound" => (Term::Outbound, 1),
            "broadcast" => (broadcast(), 1),
            "multicast" => (Term::EtherMulticast, 1),
            w if is_link(w) && next_is("broadcast") => (broadcast(), 2),
            w if is_link(w) && next_is("multicast") => (Term::EtherMulticast, 2),
            "ip" if next_is("multicast") => (Term::IpMulticast, 2),
            "ip" if next_is("broadcast") => return self.fault(Problem::Unsupported("ip broadcast".into())),
            "ip6" if next_is("multicast") => (Term::Ip6Multicast, 2),
            "less" => return self.length(Relation::LessOrEqual).map(Some),
            "greater" => return self.length(Relation::GreaterOrEqual).map(Some),
            "vlan" => return self.vlan().map(Some),
            _ => return Ok(None),
        };
        self.position += words;
        Ok(Some(term))
    }

    fn number(&mut self, expected: &'static str) -> Parsed<u32> {
        let Some(Kind::Number(value)) = self.peek() else { return Err(self.unexpected(expected)) };
        let value = *value;
        self.position += 1;
        Ok(value)
    }

    /// A number up to `max` that the message calls `what`.
    fn number_to(&mut self, what: &'static str, max: u32) -> Parsed<u32> {
        let offset = self.offset();
        let value = self.number(what)?;
        if value > max { Err((offset, Problem::TooLarge { what, value, max })) } else { Ok(value) }
    }

    fn length(&mut self, relation: Relation) -> Parsed<Term> {
        self.position += 1;
        let right = Arith::Constant(self.number("a number of bytes")?);
        Ok(Term::Compare { left: Arith::Length, relation, right })
    }

    fn vlan(&mut self) -> Parsed<Term> {
        self.position += 1;
        let tagged = matches!(self.peek(), Some(Kind::Number(_)));
        let id = if tagged { Some(self.number_to("vlan number", 4095)? as u16) } else { None };
        Ok(Term::Vlan(id))
    }

    fn scope(&mut self) -> Scope {
        let Some(Kind::Word(word)) = self.peek() else { return Scope::Default };
        let scope = match word.as_str() {
            w if is_link(w) => Scope::Link,
            "ip" => Scope::Ip,
            "ip6" => Scope::Ip6,
            "arp" => Scope::Arp,
            "rarp" => Scope::Rarp,
            "tcp" => Scope::Tcp,
            "udp" => Scope::Udp,
            "sctp" => Scope::Sctp,
            w => match OTHERS.iter().find(|(name, _)| *name == w) {
                Some((name, _)) => Scope::Other(name),
                None => return Scope::Default,
            },
        };
        self.position += 1;
        scope
    }

    /// `src`, `dst`, `src or dst`, `src and dst`.
    fn direction(&mut self) -> Option<Dir> {
        let (dir, other) = match self.peek() {
            Some(Kind::Word(w)) if w == "src" => (Dir::Src, "dst"),
            Some(Kind::Word(w)) if w == "dst" => (Dir::Dst, "src"),
            _ => return None,
        };
        self.position += 1;
        let combined = match (self.peek(), self.peek_at(1)) {
            (Some(join), Some(Kind::Word(w))) if w == other => match join {
                Kind::Word(j) if j == "or" => Some(Dir::Either),
                Kind::Word(j) if j == "and" => Some(Dir::Both),
                Kind::Symbol("||") => Some(Dir::Either),
                Kind::Symbol("&&") => Some(Dir::Both),
                _ => None,
            },
            _ => None,
        };
        if combined.is_some() {
            self.position += 2;
        }
        Some(combined.unwrap_or(dir))
    }

    fn subject(&mut self) -> Option<Subject> {
        let Some(Kind::Word(word)) = self.peek() else { return None };
        let subject = match word.as_str() {
            "host" => Subject::Host,
            "net" => Subject::Net,
            "port" => Subject::Port,
            "portrange" => Subject::PortRange,
            "proto" => Subject::Proto,
            _ => return None,
        };
        self.position += 1;
        Some(subject)
    }

    /// `tcp`, `arp` and so on without anything behind.
    fn protocol_alone(&mut self, scope: Scope, start: usize) -> Parsed<Qualified> {
        let protocol = |version, number| Term::Protocol { version, number };
        let term = match scope {
            Scope::Ip => Term::EtherType(ETHER_IP),
            Scope::Ip6 => Term::EtherType(ETHER_IP6),
            Scope::Arp => Term::EtherType(ETHER_ARP),
            Scope::Rarp => Term::EtherType(ETHER_RARP),
            Scope::Tcp => protocol(Version::Any, 6),
            Scope::Udp => protocol(Version::Any, 17),
            Scope::Sctp => protocol(Version::Any, 132),
            Scope::Other(name) => match OTHERS.iter().find(|(n, _)| *n == name) {
                Some((_, Alone::Protocol(version, number))) => protocol(*version, *number),
                Some((_, Alone::EtherType(number))) => Term::EtherType(*number),
                None => return Err((start, Problem::Name(name.to_owned()))),
            },
            Scope::Link | Scope::Default => {
                return Err(self.unexpected("'host', 'proto', 'src', 'dst', 'broadcast' or 'multicast'"));
            }
        };
        if self.at_value() {
            return Err(self.unexpected("'host', 'net', 'port', 'proto', 'src' or 'dst'"));
        }
        Ok((Expr::Term(term), None))
    }

    /// The number or address that qualifiers stand before.
    fn value(&mut self, q: Qualifiers) -> Parsed<Expr> {
        match q.subject {
            Subject::Port => self.port(q),
            Subject::PortRange => self.port_range(q),
            Subject::Proto => self.protocol(q),
            Subject::Default | Subject::Host | Subject::Net => self.address(q),
        }
        .map(Expr::Term)
    }

    /// Refuses a scope for this subject, at the value.
    fn refuse<T>(&self, scope: Scope, subject: &'static str) -> Parsed<T> {
        self.fault(Problem::Modifier { modifier: scope.name(), subject })
    }

    fn port_protocol(&self, scope: Scope) -> Parsed<Option<u8>> {
        match scope {
            Scope::Default => Ok(None),
            Scope::Tcp => Ok(Some(6)),
            Scope::Udp => Ok(Some(17)),
            Scope::Sctp => Ok(Some(132)),
            other => self.refuse(other, "a port"),
        }
    }

    fn port(&mut self, q: Qualifiers) -> Parsed<Term> {
        let protocol = self.port_protocol(q.scope)?;
        let port = self.number_to("port", 65_535)? as u16;
        Ok(Term::Ports { protocol, dir: q.dir.unwrap_or(Dir::Either), low: port, high: port })
    }

    fn port_range(&mut self, q: Qualifiers) -> Parsed<Term> {
        let protocol = self.port_protocol(q.scope)?;
        let first = self.number_to("port", 65_535)? as u16;
        let last = if self.take(&["-"]) { self.number_to("port", 65_535)? as u16 } else { first };
        let (low, high) = (first.min(last), first.max(last));
        Ok(Term::Ports { protocol, dir: q.dir.unwrap_or(Dir::Either), low, high })
    }

    fn protocol(&mut self, q: Qualifiers) -> Parsed<Term> {
        if q.dir.is_some() {
            return self.fault(Problem::Modifier { modifier: "src or dst", subject: "a protocol number" });
        }
        let version = match q.scope {
            Scope::Default => Version::Any,
            Scope::Ip => Version::V4,
            Scope::Ip6 => Version::V6,
            Scope::Link => return Ok(Term::EtherType(self.ether_type()?)),
            other => return self.refuse(other, "a protocol number"),
        };
        if let Some(number) = self.named(&PROTOCOLS) {
            return Ok(Term::Protocol { version, number });
        }
        let number = self.number_to("protocol number", 255)? as u8;
        Ok(Term::Protocol { version, number })
    }

    fn ether_type(&mut self) -> Parsed<u16> {
        if let Some(number) = self.named(&ETHER_TYPES) {
            return Ok(number);
        }
        let offset = self.offset();
        let number = self.number_to("ethertype", 65_535)? as u16;
        // Up to 1500 the field is a length and the protocol stands in an LLC header.
        if number <= 1500 {
            return Err((offset, Problem::Unsupported(format!("ether proto {number} (llc)"))));
        }
        Ok(number)
    }

    /// The value of a name in `table`, with or without a backslash.
    fn named<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        let (Kind::Word(name) | Kind::Escaped(name)) = self.peek()? else { return None };
        let value = table.iter().find(|(n, _)| n == name)?.1;
        self.position += 1;
        Some(value)
    }

    fn address(&mut self, q: Qualifiers) -> Parsed<Term> {
        match self.peek().cloned() {
            Some(Kind::Number(value)) => self.short_address(q, value),
            Some(Kind::Dotted { value, bits, text }) => self.dotted(q, value, bits, &text),
            Some(Kind::V6(address)) => self.v6(q, address),
            Some(Kind::Mac(address)) => self.mac(q, address),
            _ => Err(self.unexpected("an address")),
        }
    }

    fn mac(&mut self, q: Qualifiers, address: [u8; 6]) -> Parsed<Term> {
        if q.scope != Scope::Link {
            return self.fault(Problem::Modifier {
                modifier: q.scope.name(),
                subject: "an ethernet address; write ether before it",
            });
        }
        if q.subject == Subject::Net {
            return self.refuse(q.scope, "a net");
        }
        self.position += 1;
        Ok(Term::Mac { dir: q.dir.unwrap_or(Dir::Either), address })
    }

    fn ip4_scope(&self, scope: Scope) -> Parsed<AddressIn> {
        match scope {
            Scope::Default => Ok(AddressIn::Any),
            Scope::Ip => Ok(AddressIn::Ip),
            Scope::Arp => Ok(AddressIn::Arp),
            Scope::Rarp => Ok(AddressIn::Rarp),
            other => self.refuse(other, "an ipv4 address"),
        }
    }

    /// An address written as one number: `host 167772161`, or `net 10` for 10.0.0.0/8.
    fn short_address(&mut self, q: Qualifiers, value: u32) -> Parsed<Term> {
        let within = self.ip4_scope(q.scope)?;
        let followed_by_mask = matches!(self.peek_at(1), Some(Kind::Symbol("/")));
        let shift = if q.subject == Subject::Net && value != 0 { value.leading_zeros() / 8 * 8 } else { 0 };
        if followed_by_mask {
            return self.dotted(q, value << shift, 32 - shift, &value.to_string());
        }
        self.position += 1;
        let (address, mask) = (value << shift, u32::MAX << shift);
        Ok(Term::Host4 { within, dir: q.dir.unwrap_or(Dir::Either), address, mask })
    }

    /// Two to four dotted numbers, perhaps with a mask; what is not written is not compared.
    fn dotted(&mut self, q: Qualifiers, value: u32, bits: u32, text: &str) -> Parsed<Term> {
        let within = self.ip4_scope(q.scope)?;
        let start = self.offset();
        self.position += 1;
        let written = leading_ones(bits);
        let mask = match self.mask(q)? {
            Some(mask) => mask,
            None => written,
        };
        if value & !mask != 0 {
            return Err((start, Problem::HostBits(text.to_owned())));
        }
        Ok(Term::Host4 { within, dir: q.dir.unwrap_or(Dir::Either), address: value, mask })
    }

    /// `/8` or `mask 255.0.0.0`.
    fn mask(&mut self, q: Qualifiers) -> Parsed<Option<u32>> {
        let slash = self.is_symbol("/");
        if !slash && !self.is_word("mask") {
            return Ok(None);
        }
        if q.subject != Subject::Net {
            return self.fault(Problem::MaskOfHost);
        }
        self.position += 1;
        if slash {
            return Ok(Some(leading_ones(self.number_to("prefix length", 32)?)));
        }
        let Some(Kind::Dotted { value, .. }) = self.peek() else {
            return Err(self.unexpected("a dotted mask"));
        };
        let value = *value;
        self.position += 1;
        Ok(Some(value))
    }

    fn v6(&mut self, q: Qualifiers, address: Ipv6Addr) -> Parsed<Term> {
        if !matches!(q.scope, Scope::Default | Scope::Ip6) {
            return self.refuse(q.scope, "an ipv6 address");
        }
        let start = self.offset();
        self.position += 1;
        let mut prefix = 128;
        if self.is_symbol("/") {
            if q.subject != Subject::Net {
                return self.fault(Problem::MaskOfHost);
            }
            self.position += 1;
            prefix = self.number_to("prefix length", 128)? as u8;
        }
        let host_bits = u128::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        if address.to_bits() & host_bits != 0 {
            return Err((start, Problem::HostBits(address.to_string())));
        }
        Ok(Term::Host6 { dir: q.dir.unwrap_or(Dir::Either), address, prefix })
    }

    /// `tcp[13] & 2 != 0`; `None`, with nothing taken, if no comparison stands here.
    fn relation(&mut self) -> Parsed<Option<Expr>> {
        let start = self.position;
        if !self.at_arithmetic() {
            return Ok(None);
        }
        let bracket = self.is_symbol("(");
        let compared = self.compare();
        match compared {
            Ok(expr) => Ok(Some(expr)),
            // What begins with a bracket may be a group of terms after all, and is read again as one.
            Err(_) if bracket => {
                self.position = start;
                Ok(None)
            }
            Err(fault) => Err(fault),
        }
    }

    fn compare(&mut self) -> Parsed<Expr> {
        let left = self.arithmetic(0)?;
        let relation = self.comparison()?;
        let right = self.arithmetic(0)?;
        Ok(Expr::Term(Term::Compare { left, relation, right }))
    }

    fn at_arithmetic(&self) -> bool {
        let operator_next = || match self.peek_at(1) {
            Some(Kind::Symbol(s)) => binary(s).is_some() || relation(s).is_some(),
            _ => false,
        };
        match self.peek() {
            Some(Kind::Symbol("(" | "-")) => true,
            Some(Kind::Word(w)) if w == "len" => true,
            Some(Kind::Word(_)) => matches!(self.peek_at(1), Some(Kind::Symbol("["))),
            // Else a bare value: `port 80 or 443`.
            Some(Kind::Number(_)) => operator_next(),
            _ => false,
        }
    }

    fn comparison(&mut self) -> Parsed<Relation> {
        let found = match self.peek() {
            Some(Kind::Symbol(s)) => relation(s),
            _ => None,
        };
        let Some(relation) = found else { return Err(self.unexpected("a comparison such as '=' or '>'")) };
        self.position += 1;
        Ok(relation)
    }

    /// Operators that bind at least as strongly as `least`.
    fn arithmetic(&mut self, least: u8) -> Parsed<Arith> {
        self.deeper(|p| {
            let mut left = p.operand()?;
            for _ in 0..MAX_DEPTH {
                let Some(Kind::Symbol(symbol)) = p.peek() else { return Ok(left) };
                let Some((operator, strength)) = binary(symbol) else { return Ok(left) };
                if strength < least {
                    return Ok(left);
                }
                let at = p.offset();
                p.position += 1;
                let right = p.arithmetic(if strength == TAKES_ALL { 0 } else { strength + 1 })?;
                let divides = matches!(operator, Operator::Divide | Operator::Modulo);
                if divides && right == Arith::Constant(0) {
                    return Err((at, Problem::DivisionByZero));
                }
                left = Arith::Binary { operator, left: Box::new(left), right: Box::new(right) };
            }
            p.fault(Problem::TooDeep)
        })
    }

    fn operand(&mut self) -> Parsed<Arith> {
        if self.take(&["-"]) {
            return Ok(Arith::Negative(Box::new(self.arithmetic(NEGATIVE)?)));
        }
        if self.take(&["("]) {
            let inside = self.arithmetic(0)?;
            self.need(")", "')'")?;
            return Ok(inside);
        }
        if self.take(&["len"]) {
            return Ok(Arith::Length);
        }
        match self.peek() {
            Some(Kind::Number(value)) => {
                let constant = Arith::Constant(*value);
                self.position += 1;
                Ok(constant)
            }
            Some(Kind::Word(_)) => self.field(),
            _ => Err(self.unexpected("a number or a field such as tcp[13]")),
        }
    }

    /// `tcp[13]` or `ip[2:2]`.
    fn field(&mut self) -> Parsed<Arith> {
        let header = match self.scope() {
            Scope::Link => Header::Link,
            Scope::Ip => Header::Network(ETHER_IP),
            Scope::Ip6 => Header::Network(ETHER_IP6),
            Scope::Arp => Header::Network(ETHER_ARP),
            Scope::Rarp => Header::Network(ETHER_RARP),
            Scope::Tcp => Header::Transport4(6),
            Scope::Udp => Header::Transport4(17),
            Scope::Sctp => Header::Transport4(132),
            Scope::Other("icmp6") => Header::Transport6(58),
            Scope::Other(name) => match OTHERS.iter().find(|(n, _)| *n == name) {
                Some((_, Alone::EtherType(number))) => Header::Network(*number),
                Some((_, Alone::Protocol(_, number))) => Header::Transport4(*number),
                None => return Err(self.unexpected("a protocol's name")),
            },
            Scope::Default => return Err(self.unexpected("a number or a field such as tcp[13]")),
        };
        self.need("[", "'['")?;
        let start = self.offset();
        let offset = Box::new(self.arithmetic(0)?);
        if let Arith::Constant(value @ MAX_OFFSET..) = *offset {
            return Err((start, Problem::TooLarge { what: "offset", value, max: MAX_OFFSET - 1 }));
        }
        let size = if self.take(&[":"]) { self.field_size()? } else { 1 };
        self.need("]", "']'")?;
        Ok(Arith::Field { header, offset, size })
    }

    fn field_size(&mut self) -> Parsed<u8> {
        let offset = self.offset();
        match self.number("a size of 1, 2 or 4 bytes")? {
            size @ (1 | 2 | 4) => Ok(size as u8),
            other => Err((offset, Problem::FieldSize(other))),
        }
    }
}

fn chain(first: Expr, rest: Vec<(Join, Expr)>) -> Expr {
    if rest.is_empty() { first } else { Expr::Chain(Box::new(first), rest) }
}

/// `broadcast` is a destination of all ones.
fn broadcast() -> Term {
    Term::Mac { dir: Dir::Dst, address: [0xff; 6] }
}

fn is_link(word: &str) -> bool {
    matches!(word, "ether" | "link" | "fddi" | "tr" | "wlan")
}

fn leading_ones(bits: u32) -> u32 {
    u32::MAX.checked_shl(32 - bits).unwrap_or(0)
}

/// Strength of `%` and `^`: libpcap's grammar gives them none, so they bind before anything on their left
/// and take everything on their right.
const TAKES_ALL: u8 = u8::MAX;
/// Strength of the sign.
const NEGATIVE: u8 = 6;

fn binary(symbol: &str) -> Option<(Operator, u8)> {
    Some(match symbol {
        "|" => (Operator::Or, 1),
        "&" => (Operator::And, 2),
        "<<" => (Operator::ShiftLeft, 3),
        ">>" => (Operator::ShiftRight, 3),
        "+" => (Operator::Add, 4),
        "-" => (Operator::Subtract, 4),
        "*" => (Operator::Multiply, 5),
        "/" => (Operator::Divide, 5),
        "%" => (Operator::Modulo, TAKES_ALL),
        "^" => (Operator::Xor, TAKES_ALL),
        _ => return None,
    })
}

fn relation(symbol: &str) -> Option<Relation> {
    Some(match symbol {
        "<" => Relation::Less,
        "<=" => Relation::LessOrEqual,
        ">" => Relation::Greater,
        ">=" => Relation::GreaterOrEqual,
        "=" | "==" => Relation::Equal,
        "!=" => Relation::NotEqual,
        _ => return None,
    })
}

/// What a protocol's name means when it stands alone.
enum Alone {
    Protocol(Version, u8),
    EtherType(u16),
}

/// Protocols that stand alone or before brackets.
const OTHERS: [(&str, Alone); 14] = [
    ("icmp", Alone::Protocol(Version::V4, 1)),
    ("igmp", Alone::Protocol(Version::V4, 2)),
    ("igrp", Alone::Protocol(Version::V4, 9)),
    ("vrrp", Alone::Protocol(Version::V4, 112)),
    ("carp", Alone::Protocol(Version::V4, 112)),
    ("icmp6", Alone::Protocol(Version::V6, 58)),
    ("pim", Alone::Protocol(Version::Any, 103)),
    ("ah", Alone::Protocol(Version::Any, 51)),
    ("esp", Alone::Protocol(Version::Any, 50)),
    ("decnet", Alone::EtherType(0x6003)),
    ("lat", Alone::EtherType(0x6004)),
    ("sca", Alone::EtherType(0x6007)),
    ("moprc", Alone::EtherType(0x6002)),
    ("mopdl", Alone::EtherType(0x6001)),
];

/// Names behind `ip proto`.
const PROTOCOLS: [(&str, u8); 19] = [
    ("icmp", 1),
    ("igmp", 2),
    ("ipencap", 4),
    ("tcp", 6),
    ("igrp", 9),
    ("udp", 17),
    ("ipv6", 41),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("icmp6", 58),
    ("ipv6-icmp", 58),
    ("ospf", 89),
    ("ipip", 94),
    ("pim", 103),
    ("vrrp", 112),
    ("l2tp", 115),
    ("sctp", 132),
    ("udplite", 136),
];

/// Names behind `ether proto`.
const ETHER_TYPES: [(&str, u16); 10] = [
    ("ip", ETHER_IP),
    ("ip6", ETHER_IP6),
    ("arp", ETHER_ARP),
    ("rarp", ETHER_RARP),
    ("decnet", 0x6003),
    ("lat", 0x6004),
    ("sca", 0x6007),
    ("moprc", 0x6002),
    ("mopdl", 0x6001),
    ("loopback", 0x9000),
];

/// Words of pcap-filter(7) that are left out.
fn is_unsupported(word: &str) -> bool {
    const WORDS: [&str; 28] = [
        "aarp",
        "atalk",
        "gateway",
        "protochain",
        "mpls",
        "pppoed",
        "pppoes",
        "geneve",
        "vxlan",
        "llc",
        "iso",
        "esis",
        "isis",
        "clnp",
        "stp",
        "ipx",
        "netbeui",
        "ifname",
        "on",
        "rnr",
        "rulenum",
        "reason",
        "action",
        "type",
        "subtype",
        "ifindex",
        "lane",
        "byte",
    ];
    WORDS.contains(&word)
}

/// Words that this grammar knows; anything else is a name.
fn is_word(word: &str) -> bool {
    const WORDS: [&str; 27] = [
        "and",
        "or",
        "not",
        "src",
        "dst",
        "host",
        "net",
        "port",
        "portrange",
        "proto",
        "mask",
        "less",
        "greater",
        "len",
        "vlan",
        "broadcast",
        "multicast",
        "inbound",
        "outbound",
        "ip",
        "ip6",
        "arp",
        "rarp",
        "tcp",
        "udp",
        "sctp",
        "mask",
    ];
    WORDS.contains(&word) || is_link(word) || OTHERS.iter().any(|(name, _)| *name == word)
}
