//! Classifies flows by whether they led to a connection. Pure.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::super::abi::{ACK, FIN, PSH, RST, SYN, TICK_NANOSECONDS, URG};
use super::super::tables::{Flow, FlowKey};
use super::snapshot::{FIRST_USER_PORT, Snapshot};

/// The age in nanoseconds at which a flow is judged: before, answers may still be under way.
const MIN_AGE: u64 = 1_000_000_000;

/// How long after an interface's first flow UDP from ports of well-known services may answer what was sent before its
/// packets were counted, in nanoseconds: a resolver may have hundreds of queries under way.
const LATE_ANSWERS: u64 = 10_000_000_000;

/// The kind of a received flow that led to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    /// SYN without a later ACK.
    HalfOpen,
    /// Flags that occur in no connection.
    Anomaly(&'static str),
    /// Segments of no known connection, answered by RST only. Not to ports from which programs connect: after a crash,
    /// peers go on to send on all connections of before.
    Stray,
    /// UDP that was not answered and is no answer itself. Not to ports from which programs send: there are late answers
    /// and traceroute.
    Unanswered,
}

/// UDP packets to a port that still count as an attempt. Longer flows go to receivers that never answer: media, logs,
/// measurements.
const MAX_ATTEMPT_PACKETS: u64 = 8;

/// Names of anomalies.
pub(super) const ANOMALIES: [&str; 5] = ["null", "fin", "xmas", "syn_fin", "no_ack"];

/// New packets of a flow since the previous evaluation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub key: FlowKey,
    pub attempt: Attempt,
    pub packets: u64,
}

/// Tracks flows between evaluations.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    before: HashMap<FlowKey, u64>,
    /// The time of the first evaluation: older flows are not new.
    began: Option<u64>,
    /// The first flow of each interface.
    first: HashMap<u32, u64>,
    untracked: u64,
}

impl Attempts {
    /// Failed attempts with new packets.
    pub fn evaluate(&mut self, at: &Snapshot) -> Vec<Step> {
        let began = *self.began.get_or_insert(at.now);
        // While the table is full, the other direction of a flow may be missing from it.
        let is_whole = std::mem::replace(&mut self.untracked, at.untracked) == at.untracked;
        let mut now = HashMap::new();
        let mut steps = Vec::new();
        self.see_interfaces(at);
        for (key, flow) in &at.flows {
            let first = begun(flow);
            if key.egress || at.now.saturating_sub(first) < MIN_AGE {
                continue;
            }
            let Some(attempt) = attempt(key, flow, &at.flows, is_whole) else { continue };
            if self.may_be_an_answer(key, first, attempt, at) {
                continue;
            }
            let packets = flow.sum.packets;
            let before = self.before.get(key).copied();
            let before = before.unwrap_or(if first < began { packets } else { 0 });
            now.insert(*key, packets);
            if packets > before {
                steps.push(Step { key: *key, attempt, packets: packets - before });
            }
        }
        self.before = now;
        steps
    }

    /// Notes when the flows of each interface began.
    fn see_interfaces(&mut self, at: &Snapshot) {
        let mut all: HashMap<u32, u64> = HashMap::new();
        for (key, flow) in &at.flows {
            let earliest = all.entry(key.port).or_insert(u64::MAX);
            let known = self.first.get(&key.port).copied().unwrap_or(u64::MAX);
            *earliest = begun(flow).min(known).min(*earliest);
        }
        self.first = all;
    }

    /// Whether it may belong to something that this machine began, before its packets were counted or before a crash.
    fn may_be_an_answer(&self, key: &FlowKey, first: u64, attempt: Attempt, at: &Snapshot) -> bool {
        let to_client = key.destination_port >= at.first_client_port.0;
        let age = first - self.first.get(&key.port).copied().unwrap_or(first);
        match attempt {
            Attempt::Stray => to_client,
            Attempt::Unanswered => to_client || key.source_port < FIRST_USER_PORT && age < LATE_ANSWERS,
            Attempt::HalfOpen | Attempt::Anomaly(_) => false,
        }
    }
}

/// The time of a flow's first packet.
fn begun(flow: &Flow) -> u64 {
    u64::from(flow.first) * TICK_NANOSECONDS
}

fn answer<'a>(key: &FlowKey, flows: &'a HashMap<FlowKey, Flow>) -> Option<&'a Flow> {
    flows.get(&FlowKey {
        egress: true,
        source: key.destination,
        destination: key.source,
        source_port: key.destination_port,
        destination_port: key.source_port,
        ..*key
    })
}

fn attempt(key: &FlowKey, flow: &Flow, flows: &HashMap<FlowKey, Flow>, is_whole: bool) -> Option<Attempt> {
    if i32::from(key.protocol) == libc::IPPROTO_UDP {
        let to_one = match key.destination {
            IpAddr::V4(address) => !address.is_broadcast() && !address.is_multicast(),
            IpAddr::V6(address) => !address.is_multicast(),
        };
        // Later fragments have no ports.
        let is_meant =
            is_whole && to_one && key.destination_port != 0 && flow.sum.packets <= MAX_ATTEMPT_PACKETS;
        return (is_meant && answer(key, flows).is_none()).then_some(Attempt::Unanswered);
    }
    if i32::from(key.protocol) != libc::IPPROTO_TCP || key.destination_port == 0 {
        return None;
    }
    let has = |flags: u8| flow.tcp_flags & flags == flags;
    if has(ACK) {
        let reset = |answer: &Flow| answer.tcp_flags & !ACK == RST;
        return (!has(SYN) && answer(key, flows).is_some_and(reset)).then_some(Attempt::Stray);
    }
    let anomaly = match flow.tcp_flags {
        0 => "null",
        _ if has(SYN | FIN) => "syn_fin",
        _ if has(SYN) => return Some(Attempt::HalfOpen),
        // The end of a connection that was not seen, or of one opened here.
        _ if has(RST) => return None,
        _ if has(FIN | PSH | URG) => "xmas",
        _ if has(FIN) => "fin",
        _ => "no_ack",
    };
    Some(Attempt::Anomaly(anomaly))
}

/// Sources with working connections: both sides sent data or acknowledged it, and this side did not end it by RST.
pub(super) fn connected(flows: &HashMap<FlowKey, Flow>) -> HashSet<IpAddr> {
    let works = |(key, flow): &(&FlowKey, &Flow)| {
        !key.egress
            && i32::from(key.protocol) == libc::IPPROTO_TCP
            && flow.tcp_flags & ACK != 0
            && flow.tcp_data
            && answer(key, flows).is_some_and(|answer| answer.tcp_data && answer.tcp_flags & RST == 0)
    };
    flows.iter().filter(works).map(|(key, _)| key.source).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::net::counters::Sum;

    pub const SECOND: u64 = 1_000_000_000;

    pub fn key(protocol: i32, source: [u8; 4], source_port: u16, port: u16) -> FlowKey {
        FlowKey {
            port: 1,
            egress: false,
            source: source.into(),
            destination: [10, 0, 0, 1].into(),
            source_port,
            destination_port: port,
            protocol: protocol as u8,
        }
    }

    pub fn flow(second: u64, packets: u64, tcp_flags: u8) -> Flow {
        let tick = (second * SECOND / TICK_NANOSECONDS) as u32;
        let tcp_data = tcp_flags & ACK != 0;
        Flow { sum: Sum { packets, bytes: 60 * packets }, first: tick, last: tick, tcp_flags, tcp_data }
    }

    pub fn back(key: FlowKey) -> FlowKey {
        FlowKey {
            egress: true,
            source: key.destination,
            destination: key.source,
            source_port: key.destination_port,
            destination_port: key.source_port,
            ..key
        }
    }

    fn attempt_of(flags: u8, answer: Option<u8>) -> Option<Attempt> {
        let key = key(libc::IPPROTO_TCP, [192, 0, 2, 1], 4000, 22);
        let mut flows = HashMap::from([(key, flow(5, 1, flags))]);
        flows.extend(answer.map(|flags| (back(key), flow(5, 1, flags))));
        attempt(&key, &flows[&key], &flows, true)
    }

    #[test]
    fn classifies_failed_flows() {
        let anomaly = |kind| Some(Attempt::Anomaly(kind));
        for (flags, answer, expected) in [
            (SYN, None, Some(Attempt::HalfOpen)),
            (SYN, Some(SYN | ACK), Some(Attempt::HalfOpen)),
            (SYN, Some(RST | ACK), Some(Attempt::HalfOpen)),
            (SYN | RST, Some(SYN | ACK), Some(Attempt::HalfOpen)),
            (SYN | ACK | FIN, Some(SYN | ACK | FIN), None),
            // An answer to a connection opened here.
            (SYN | ACK, Some(SYN), None),
            (RST | ACK, Some(SYN), None),
            (RST, None, None),
            (ACK, None, None),
            (ACK, Some(RST), Some(Attempt::Stray)),
            (FIN | ACK, Some(RST | ACK), Some(Attempt::Stray)),
            (SYN | ACK | PSH, Some(SYN | ACK | RST), None),
            (0, Some(RST | ACK), anomaly("null")),
            (FIN, None, anomaly("fin")),
            (FIN | PSH | URG, None, anomaly("xmas")),
            (SYN | FIN, None, anomaly("syn_fin")),
            (SYN | FIN | PSH | URG, None, anomaly("syn_fin")),
            (PSH, None, anomaly("no_ack")),
        ] {
            assert_eq!(attempt_of(flags, answer), expected, "{flags:#x} {answer:?}");
        }
    }

    #[test]
    fn unanswered_udp_counts_as_an_attempt() {
        let asked = key(libc::IPPROTO_UDP, [192, 0, 2, 1], 53, 40_000);
        let mut flows = HashMap::from([(asked, flow(5, 1, 0))]);
        assert_eq!(attempt(&asked, &flows[&asked], &flows, true), Some(Attempt::Unanswered));
        assert_eq!(
            attempt(&asked, &flows[&asked], &flows, false),
            None,
            "what is missing may be the other way"
        );
        flows.insert(back(asked), flow(4, 1, 0));
        assert_eq!(attempt(&asked, &flows[&asked], &flows, true), None);
        flows.clear();
        let stream = flow(5, MAX_ATTEMPT_PACKETS + 1, 0);
        assert_eq!(attempt(&asked, &stream, &flows, true), None, "nobody answers a stream of media");
        let group = FlowKey { destination: [224, 0, 0, 251].into(), ..asked };
        assert_eq!(attempt(&group, &flow(5, 1, 0), &flows, true), None);
    }

    #[test]
    fn new_packets_are_counted_once() {
        let one = key(libc::IPPROTO_TCP, [192, 0, 2, 1], 4000, 22);
        let mut attempts = Attempts::default();
        let mut evaluate = |second: u64, flows: &[(FlowKey, Flow)]| -> Vec<u64> {
            let flows = flows.iter().copied().collect();
            let at = Snapshot { now: second * SECOND, flows, ..Snapshot::default() };
            attempts.evaluate(&at).iter().map(|step| step.packets).collect()
        };
        assert!(evaluate(100, &[(one, flow(90, 7, SYN))]).is_empty(), "it was there before");
        assert_eq!(evaluate(101, &[(one, flow(90, 9, SYN))]), [2]);
        let other = FlowKey { source_port: 4001, ..one };
        assert!(
            evaluate(102, &[(one, flow(90, 9, SYN)), (other, flow(102, 3, SYN))]).is_empty(),
            "it is too young"
        );
        assert_eq!(evaluate(104, &[(one, flow(90, 9, SYN)), (other, flow(102, 4, SYN))]), [4]);
    }

    #[test]
    fn answers_to_what_was_before_are_no_attempts() {
        let steps = |flows: &[(FlowKey, Flow)]| {
            let mut attempts = Attempts::default();
            let began = key(libc::IPPROTO_TCP, [192, 0, 2, 9], 4000, 22);
            let mut evaluate = |second: u64, flows: &[(FlowKey, Flow)]| {
                let flows = flows.iter().copied().chain([(began, flow(100, 1, SYN | ACK))]).collect();
                attempts.evaluate(&Snapshot { now: second * SECOND, flows, ..Snapshot::default() }).len()
            };
            assert_eq!(evaluate(100, &[]), 0);
            evaluate(130, flows)
        };
        let udp = |from: u16, to: u16, second: u64| {
            (key(libc::IPPROTO_UDP, [192, 0, 2, 1], from, to), flow(second, 1, 0))
        };
        // An answer of a name server to a resolver that chooses ports itself, soon after the start and later.
        assert_eq!(steps(&[udp(53, 20_000, 105)]), 0);
        assert_eq!(steps(&[udp(53, 20_000, 115)]), 1);
        assert_eq!(steps(&[udp(53, 40_000, 115)]), 0);
        assert_eq!(steps(&[udp(40_000, 53, 105)]), 1);
        // Traceroute.
        assert_eq!(steps(&[udp(40_000, 33_434, 115)]), 0);
        // A server goes on to send to a client that has crashed; an ACK scan.
        for (port, expected) in [(50_000, 0), (80, 1)] {
            let stray = key(libc::IPPROTO_TCP, [192, 0, 2, 1], 5672, port);
            let flows = [(stray, flow(115, 1, ACK | PSH)), (back(stray), flow(115, 1, RST))];
            assert_eq!(steps(&flows), expected, "{port}");
        }
    }

    #[test]
    fn connections_need_both_directions() {
        let one = key(libc::IPPROTO_TCP, [192, 0, 2, 1], 4000, 22);
        let mut flows = HashMap::from([(one, flow(5, 5, SYN | ACK))]);
        assert!(connected(&flows).is_empty());
        flows.insert(back(one), flow(5, 5, SYN | ACK | RST));
        assert!(connected(&flows).is_empty(), "an ACK without a connection");
        flows.insert(back(one), flow(5, 5, SYN | ACK));
        assert!(connected(&flows).contains(&one.source));
    }
}
