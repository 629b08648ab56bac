//! no-strangers: every captured frame is a canary, an exchange's, known housekeeping, or has nothing to do with the lab.
//! One that nobody can account for and that shows a pod's address, a frontend or the client is an offence, whatever
//! protocol it is of. The same in every mode.

use crate::proof::Findings;
use crate::story::Story;

pub(super) fn check(story: &Story<'_>) -> Findings {
    let mut findings = Findings::default();
    for stranger in &story.strangers {
        let point = story.point_name(stranger.packet);
        findings
            .offence(stranger.packet, format!("a packet of nobody's at {point} shows {}", stranger.shows));
    }
    for (point, _) in story.places.iter().enumerate().filter(|(i, p)| p.is_none() && story.present[*i] > 0) {
        findings.doubt(format!("{} is no place of the lab", story.info(point).point));
    }
    let frames = story.roles.len() as u64;
    let unrelated = u64::from(story.unrelated);
    findings.number("frames", frames);
    findings.number("unrelated", unrelated);
    let rest =
        if unrelated > 0 { format!(", {unrelated} have nothing to do with the lab") } else { String::new() };
    findings.state(frames, "frame", format!("{frames} frames are accounted for{rest}"));
    findings
}
