//! What a check collects on its way, and how that becomes a result.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::case::Place;
use crate::context::Context;
use crate::judge::{CheckResult, Offence, Status};

/// Offending packets in the evidence of one check; more would bury the first.
const SHOWN: usize = 10;

/// Offences, doubts and numbers.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    offences: Vec<Offence>,
    /// Why the evidence does not suffice; each reason once.
    doubts: BTreeSet<String>,
    numbers: Map<String, Value>,
    skipped: Option<&'static str>,
    /// The sentence for a pass.
    claim: String,
}

impl Findings {
    /// A check that does not apply.
    pub(crate) fn skip(why: &'static str) -> Self {
        Self { skipped: Some(why), ..Self::default() }
    }

    /// A packet violates the expectation.
    pub(crate) fn offence(&mut self, packet: usize, why: impl Into<String>) {
        self.offences.push(Offence { packet: Some(packet), why: why.into() });
    }

    /// Something violates the expectation that no packet shows.
    pub(crate) fn complaint(&mut self, why: impl Into<String>) {
        self.offences.push(Offence { packet: None, why: why.into() });
    }

    /// A packet was not seen at a place: an offence if that place is proof, else a doubt. `packet` is where it
    /// was seen last.
    pub(crate) fn absent(
        &mut self,
        context: &Context<'_>,
        place: Place,
        packet: Option<usize>,
        why: impl Into<String>,
    ) {
        match lack_of_proof(context, place) {
            None => self.offences.push(Offence { packet, why: why.into() }),
            Some(doubt) => self.doubt(doubt),
        }
    }

    /// The evidence does not suffice.
    pub(crate) fn doubt(&mut self, why: impl Into<String>) {
        self.doubts.insert(why.into());
    }

    /// The claim rests on what was *not* seen at this place.
    pub(crate) fn require(&mut self, context: &Context<'_>, place: Place) {
        self.doubts.extend(lack_of_proof(context, place));
    }

    /// The claim rests on what was not seen at any captured place.
    pub(crate) fn require_all(&mut self, context: &Context<'_>) {
        self.require(context, Place::Client);
        let places: Vec<_> = context.places.iter().copied().flatten().collect();
        for place in places {
            self.require(context, place);
        }
    }

    /// A number for the evidence.
    pub(crate) fn number(&mut self, name: &str, value: impl Into<Value>) {
        self.numbers.insert(name.to_owned(), value.into());
    }

    /// The sentence for a pass.
    pub(crate) fn claim(&mut self, text: impl Into<String>) {
        self.claim = text.into();
    }

    pub(crate) fn result(self, name: &'static str, context: &Context<'_>) -> CheckResult {
        let (status, summary) = self.conclusion();
        let mut evidence = self.numbers;
        if !self.offences.is_empty() {
            evidence.insert("offences".to_owned(), json!(self.offences.len()));
            let shown = self.offences.iter().take(SHOWN);
            evidence.insert("first".to_owned(), shown.map(|o| describe(context, o)).collect());
        }
        if !self.doubts.is_empty() {
            evidence.insert("doubts".to_owned(), json!(self.doubts));
        }
        CheckResult { name, status, summary, evidence: Value::Object(evidence), offences: self.offences }
    }

    fn conclusion(&self) -> (Status, String) {
        if let Some(why) = self.skipped {
            return (Status::Skip, why.to_owned());
        }
        match (&self.offences[..], self.doubts.first()) {
            ([], None) => (Status::Pass, self.claim.clone()),
            ([], Some(doubt)) => {
                let more = more(self.doubts.len() - 1, "reason");
                (Status::Inconclusive, format!("cannot be said: {doubt}{more}"))
            }
            ([first, rest @ ..], _) => {
                (Status::Fail, format!("{}{}", first.why, more(rest.len(), "offence")))
            }
        }
    }
}

/// ` (and 3 more offences)`, or nothing.
fn more(count: usize, noun: &str) -> String {
    match count {
        0 => String::new(),
        1 => format!(" (and 1 more {noun})"),
        n => format!(" (and {n} more {noun}s)"),
    }
}

fn describe(context: &Context<'_>, offence: &Offence) -> Value {
    let Some(index) = offence.packet else { return json!({ "why": offence.why }) };
    let captured = context.captured(index);
    json!({
        "why": offence.why,
        "packet": index,
        "point": context.info(captured.point).point.to_string(),
        "direction": captured.direction,
        "time_ns": captured.ts_ns,
        "text": context.line(index),
    })
}

/// Why the absence of a packet at a place proves nothing; `None` if it does.
fn lack_of_proof(context: &Context<'_>, place: Place) -> Option<String> {
    let name = context.place_name(place);
    // Several points may share a place (pod links of one node): each must hold.
    let mut points = (0..context.places.len()).filter(|i| context.places[*i] == Some(place)).peekable();
    if points.peek().is_none() {
        return Some(format!("nothing was captured on {name}"));
    }
    points.find_map(|point| {
        let info = context.info(point);
        let name = &info.point;
        match (info.live, info.dropped) {
            (false, _) => Some(format!(
                "the capture on {name} was not proven live: it did not see each of {} rounds of canaries",
                context.evidence.canary_rounds
            )),
            (true, None) => Some(format!("the capture on {name} ended without its counters")),
            (true, Some(0)) => None,
            (true, Some(lost)) => Some(format!("the capture on {name} lost {lost} packets")),
        }
    })
}
