//! The optional record per rewrite. With the flag off the verifier removes all of it.

use datapath_types::{Event, EventAction, Hook, SettingsFlags};

use crate::{flow::now, maps::EVENTS, packet::Packet, rewrite::Tuple, settings};

/// Writes one record; a full buffer loses it and nothing else.
#[inline(always)]
pub(crate) fn emit(hook: Hook, action: EventAction, packet: &Packet, new: &Tuple) {
    if !settings::has(SettingsFlags::EVENTS) {
        return;
    }
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else { return };
    entry.write(Event {
        time: now(),
        src: packet.src,
        dst: packet.dst,
        new_src: new.src,
        new_dst: new.dst,
        sport: packet.sport,
        dport: packet.dport,
        new_sport: new.sport,
        new_dport: new.dport,
        ip_id: packet.id,
        proto: packet.proto,
        hook: hook as u8,
        action: action as u8,
        tcp_flags: packet.tcp_flags,
        pad: 0,
    });
    entry.submit(0);
}
