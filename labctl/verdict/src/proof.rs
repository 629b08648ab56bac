//! What a check says, and what it rests on.
//!
//! Owns: findings, and whether a place proves that something was *not* there. Does not own: any check, or the verdict
//! ([`crate::judge`], which alone turns findings into results: a check cannot forget to ask for its captures).

use std::collections::BTreeSet;

use labctl_model::ProviderKind;

use crate::result::{Number, Offence};
use crate::scene::case::Side;
use crate::scene::place::Place;
use crate::story::Story;

/// What a statement rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Footing {
    /// On every place of the lab: that no packet anywhere says otherwise. What a check rests on unless it says less.
    Everywhere,
    /// On these places only.
    At(BTreeSet<Place>),
    /// On the packets that were seen: it holds for them, whatever was not. In a run of our own that is still every place,
    /// because a packet that was missed there is a fault of the run.
    Seen,
}

/// Something that was not seen where it should have been.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Absence {
    place: Place,
    /// Where it was seen last.
    packet: Option<usize>,
    why: String,
}

/// What a check found.
#[derive(Debug)]
pub(crate) struct Findings {
    footing: Footing,
    /// How many packets or reports the statement counts, and what they are called; a statement about none is none.
    counted: Option<(u64, &'static str)>,
    offences: Vec<Offence>,
    absences: Vec<Absence>,
    doubts: BTreeSet<String>,
    numbers: Vec<Number>,
    statement: String,
    skipped: Option<&'static str>,
}

/// Findings after the judge has asked the captures.
#[derive(Debug)]
pub(crate) struct Weighed {
    pub(crate) skipped: Option<&'static str>,
    pub(crate) statement: String,
    /// Whether the statement speaks of anything.
    pub(crate) counted: bool,
    pub(crate) numbers: Vec<Number>,
    pub(crate) offences: Vec<Offence>,
    pub(crate) doubts: BTreeSet<String>,
}

impl Default for Findings {
    fn default() -> Self {
        Self::resting(Footing::Everywhere)
    }
}

impl Findings {
    /// Findings that rest on less than all places.
    pub(crate) fn resting(footing: Footing) -> Self {
        Self {
            footing,
            counted: None,
            offences: Vec::new(),
            absences: Vec::new(),
            doubts: BTreeSet::new(),
            numbers: Vec::new(),
            statement: String::new(),
            skipped: None,
        }
    }

    /// A check that does not apply.
    pub(crate) fn skip(why: &'static str) -> Self {
        Self { skipped: Some(why), ..Self::default() }
    }

    /// A packet violates the expectation.
    pub(crate) fn offence(&mut self, packet: usize, why: impl Into<String>) {
        self.offences.push(Offence::new(Some(packet), why));
    }

    /// Something violates the expectation that no packet shows.
    pub(crate) fn complaint(&mut self, why: impl Into<String>) {
        self.offences.push(Offence::new(None, why));
    }

    /// A packet was not seen at a place: an offence if that place is proof, else a doubt. `packet` is where it was seen
    /// last.
    pub(crate) fn absent(&mut self, place: Place, packet: Option<usize>, why: impl Into<String>) {
        self.absences.push(Absence { place, packet, why: why.into() });
    }

    /// The evidence does not suffice.
    pub(crate) fn doubt(&mut self, why: impl Into<String>) {
        self.doubts.insert(why.into());
    }

    /// A number for the evidence.
    pub(crate) fn number(&mut self, name: &'static str, value: impl Into<Option<u64>>) {
        self.numbers.push(Number { name, value: value.into() });
    }

    /// The sentence for a pass, and how many of what it speaks of: of none it would say nothing.
    pub(crate) fn state(&mut self, count: u64, of: &'static str, text: impl Into<String>) {
        (self.counted, self.statement) = (Some((count, of)), text.into());
    }

    /// Asks the captures.
    pub(crate) fn weigh(mut self, story: &Story<'_>) -> Weighed {
        let footing = match &self.footing {
            Footing::Seen if story.is_foreign() => BTreeSet::new(),
            Footing::Everywhere | Footing::Seen => everywhere(story),
            Footing::At(places) => places.clone(),
        };
        self.doubts.extend(footing.into_iter().filter_map(|place| lack_of_proof(story, place)));
        for Absence { place, packet, why } in self.absences {
            match lack_of_proof(story, place) {
                None => self.offences.push(Offence::new(packet, why)),
                Some(doubt) => {
                    self.doubts.insert(doubt);
                }
            }
        }
        match self.counted {
            Some((1.., _)) => {}
            Some((0, of)) => {
                self.doubts.insert(format!("no {of} was seen"));
            }
            None => {
                self.doubts.insert("nothing was looked at".to_owned());
            }
        }
        let counted = matches!(self.counted, Some((1.., _)));
        let Self { offences, doubts, numbers, statement, skipped, .. } = self;
        Weighed { skipped, statement, counted, numbers, offences, doubts }
    }
}

/// Every place that a packet of the run may have passed: the client's link, uplinks and pods on the way of any exchange,
/// and whatever else was captured. Other interfaces of nodes in somebody else's cluster carry their traffic, not ours,
/// and no canary can be sent past them.
fn everywhere(story: &Story<'_>) -> BTreeSet<Place> {
    let mut places = BTreeSet::from([Place::Client]);
    for of in 0..story.cases.len() {
        for side in [Side::Request, Side::Reply] {
            let on_way = story.way(of, side).iter().map(|w| w.spot.place);
            places.extend(on_way.filter(|place| must_be_proven(story, *place)));
        }
    }
    places.extend(story.cases.iter().map(|c| Place::Uplink(c.ingress)));
    let strict = story.plan.provider == ProviderKind::Netns;
    let captured = story.places.iter().flatten().copied();
    places.extend(captured.filter(|p| strict || !matches!(p, Place::Side(_) | Place::Stray)));
    places
}

/// Whether a place on a way must be proven. A node's side of a pod's link is known by the canaries that left by it: where the
/// node has a captured interface that nobody knows, it may be that link, and its capture has seen nothing.
fn must_be_proven(story: &Story<'_>, place: Place) -> bool {
    let Place::Veth(backend) = place else { return true };
    let node = story.backends().get(backend).map(|b| b.node);
    let unknown = || story.places.iter().flatten().any(|p| matches!(p, Place::Side(of) if Some(*of) == node));
    story.habits.owns_pod_links && unknown()
}

/// Why the absence of a packet at a place proves nothing; `None` if it does.
pub(crate) fn lack_of_proof(story: &Story<'_>, place: Place) -> Option<String> {
    // Several points may share a place: each must hold.
    let mut points = (0..story.places.len()).filter(|i| story.places[*i] == Some(place)).peekable();
    if points.peek().is_none() {
        return Some(format!("nothing was captured on {}", story.place_name(place)));
    }
    points.find_map(|point| doubt_about(story, point))
}

fn doubt_about(story: &Story<'_>, point: usize) -> Option<String> {
    let info = story.info(point);
    let name = &info.point;
    if let Some(vouched) = story.evidence.origin.files() {
        return match vouched.unfit.get(&name.to_string()) {
            Some(why) => Some(why.clone()),
            None if vouched.complete.contains(&name.host) => None,
            None => Some(format!("nobody vouches that the capture on {name} is whole")),
        };
    }
    let present = story.present[point];
    match (info.live, info.dropped, info.received) {
        (false, ..) => Some(format!(
            "the capture on {name} was not proven live: it did not see each of {} rounds of canaries",
            story.evidence.canaries.rounds
        )),
        (true, None, _) | (true, _, None) => {
            Some(format!("the capture on {name} ended without its counters"))
        }
        (true, Some(lost @ 1..), _) => Some(format!("the capture on {name} lost {lost} packets")),
        (true, Some(0), Some(received)) if received != present => {
            Some(format!("the capture on {name} received {received} packets, and {present} are in the file"))
        }
        (true, Some(0), Some(_)) => story.fitness.doubt_about(name).map(str::to_owned),
    }
}
