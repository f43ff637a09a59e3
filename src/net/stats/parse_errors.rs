//! Malformed packets.

use std::mem::offset_of;

use crate::exposition::{Family, Kind};

use super::super::abi::{ParseError, net_stats};
use super::super::counters::Counters;
use super::{Counted, Statistic};

pub(super) const STATISTIC: Statistic = Statistic { switch: None, families };

impl Counters {
    /// Malformed frames.
    pub fn parse_errors(&self, error: ParseError) -> u64 {
        self.at(offset_of!(net_stats, errors), error as usize)
    }
}

fn families(counted: &[Counted<'_>]) -> Vec<Family> {
    let help = "Frames with truncated or inconsistent headers; they are passed on, and counted in the packet \
         counters too.";
    let mut parse_errors = Family::new("xdp_malformed_packets_total", Kind::Counter, help);
    for one in counted {
        for error in ParseError::ALL {
            let labels = [("direction", one.direction.label()), ("reason", error.label())];
            parse_errors.number_of(one.of, &labels, one.counters.parse_errors(*error));
        }
    }
    vec![parse_errors]
}
