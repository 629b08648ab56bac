//! An exchange in words.
//!
//! Owns: one line for people. Does not own: where the line goes.

use std::fmt::Write;

use labctl_wire::{Exchange, Outcome};

/// One line without a newline, for example `#7 tcp 172.18.0.1:41234 -> 172.18.0.3:32000: answered by web-1 on
/// worker2, which saw 172.18.0.1:41234; 139 bytes in 1.2 ms (connect 0.3 ms, first byte 0.8 ms)`.
pub fn describe(exchange: &Exchange) -> String {
    let Exchange { id, protocol, local, remote, .. } = exchange;
    let mut line = format!("#{id} {protocol} {local} -> {remote}: ");
    match &exchange.outcome {
        Outcome::Unknown => line.push_str("of unknown outcome"),
        Outcome::Answered => line.push_str("answered"),
        Outcome::TimedOut { waiting_for } => {
            let _infallible = write!(line, "timed out waiting for the {waiting_for}");
        }
        Outcome::Failed { error } => {
            let _infallible = write!(line, "failed: {error}");
        }
        Outcome::Corrupt { detail } => {
            let _infallible = write!(line, "corrupt: {detail}");
        }
    }
    if let Some(by) = &exchange.served_by {
        let _infallible = write!(line, " by {} on {}, which saw {}", by.pod, by.node, by.peer);
    }
    let _infallible = write!(line, "; {} bytes", exchange.received);
    line.push_str(&times(exchange));
    line
}

fn times(exchange: &Exchange) -> String {
    let millis = |us: u64| format!("{}.{} ms", us / 1000, us % 1000 / 100);
    let timings = &exchange.timings;
    let parts: Vec<String> = [("connect", timings.connect_us), ("first byte", timings.first_byte_us)]
        .into_iter()
        .filter_map(|(name, us)| Some(format!("{name} {}", millis(us?))))
        .collect();
    let total = timings.total_us.map(|us| format!(" in {}", millis(us))).unwrap_or_default();
    match parts.is_empty() {
        true => total,
        false => format!("{total} ({})", parts.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use labctl_wire::{ServedBy, Timings};

    use super::*;

    #[test]
    fn answered_exchange_reads_as_a_sentence() {
        let socket = |s: &str| s.parse().expect("literal");
        let exchange = Exchange {
            id: 7,
            protocol: "tcp".into(),
            local: socket("172.18.0.1:41234"),
            remote: socket("172.18.0.3:32000"),
            started_ns: 0,
            outcome: Outcome::Answered,
            timings: Timings { connect_us: Some(310), first_byte_us: Some(820), total_us: Some(1234) },
            received: 139,
            served_by: Some(ServedBy {
                node: "worker2".into(),
                pod: "web-1".into(),
                peer: socket("172.18.0.1:41234"),
                local: socket("10.0.1.108:8080"),
            }),
        };
        assert_eq!(
            describe(&exchange),
            "#7 tcp 172.18.0.1:41234 -> 172.18.0.3:32000: answered by web-1 on worker2, which saw \
             172.18.0.1:41234; 139 bytes in 1.2 ms (connect 0.3 ms, first byte 0.8 ms)"
        );
    }
}
