//! `ban:` of a probe: the address that is banned for hits.

use std::borrow::Cow;

use super::conditions;
use super::fields::{Fields, Node};
use super::metrics::WHEN_KEY;
use super::model::{Ban, Named};
use super::section::{Key, Schema, Section, words};

/// The allowed numbers of hits before a ban.
pub const BAN_AFTER: std::ops::RangeInclusive<u32> = 1..=1000;

/// The `ban:` key of a probe or span.
pub(super) const BAN_KEY: Key = Key::new(
    "ban",
    Schema::OneOrList(&Schema::Section(|| &BAN)),
    "Whose address is banned by hits of this probe, such as a failed login.",
);

/// Whether addresses are banned, or detections only reported.
pub const BAN_MODES: &[(&str, bool)] = &[("observe", false), ("enforce", true)];

/// Keys shared by `ban:` and the modules of `network.detect:`.
pub const MODE: Key = Key::new(
    "mode",
    Schema::Words(|| words(BAN_MODES)),
    "`enforce` bans, which needs `network.block`; `observe` only counts, logs and keeps the event.",
)
.or("observe");
pub const TTL: Key =
    Key::new("ttl", Schema::LabelText, "How long the first ban of an address holds.").or("10m");
pub const MAX_TTL: Key = Key::new(
    "max_ttl",
    Schema::LabelText,
    "Each further ban is twice as long, up to this. After that long without a ban, the address starts again from the first.",
)
.or("24h");

/// An element of `ban:`.
pub static BAN: Section = Section {
    name: "ban",
    what: "a ban",
    about: "Bans the address in an argument after a number of hits: it is put on the blocklist (`network.block`) for some time.",
    keys: Cow::Borrowed(&[
        Key::new(
            "address",
            Schema::Name,
            "Argument with the address: of type `ipv4`, `ipv6` or `sockaddr`, or text such as `192.0.2.7`, `192.0.2.7:22` or \
             `[2001:db8::1]:22`.",
        )
        .required(),
        WHEN_KEY,
        Key::new(
            "after",
            Schema::Integer(*BAN_AFTER.start() as i64, *BAN_AFTER.end() as i64),
            "Hits from an address after which it is banned.",
        )
        .or("1"),
        Key::new("within", Schema::LabelText, "The time in which they come: `90s`, `15min`, `12h`, `1d`.").or("60s"),
        TTL,
        MAX_TTL,
        Key::new(
            "reason",
            Schema::Text,
            "Shown with the entry; the label `kind` or `reason` of metrics. Default: the probe's name.",
        ),
        MODE,
    ]),
    one_of: &[],
};

/// Decodes the bans of a probe.
pub(super) fn of_probe(fields: &Fields<'_>) -> Vec<Ban> {
    let all = fields.get("ban").map(|node| node.one_or_list()).unwrap_or_default();
    all.iter().filter_map(ban).collect()
}

fn ban(node: &Node<'_>) -> Option<Ban> {
    let fields = node.fields(&BAN)?;
    let address =
        fields.require("address", "write address: NAME, where NAME is an argument with the peer's address");
    let address = address.and_then(|n| Some(Named { name: n.name()?.to_owned(), at: n.at }));
    let time = |key: &str| fields.get(key).and_then(|n| Some(Named { name: n.label_text()?, at: n.at }));
    let when = fields.get("when").map(|n| conditions::decode(&n)).unwrap_or_default();
    let after = fields.get("after").and_then(|n| n.integer("a number of hits", BAN_AFTER));
    let after = after.or_else(|| BAN.default("after", |text| text.parse().ok()));
    let (within, ttl, max_ttl) = (time("within"), time("ttl"), time("max_ttl"));
    let reason = fields.get("reason").and_then(|n| n.text()).map(str::to_owned);
    let enforce = fields.get("mode").and_then(|n| n.one_of("mode", BAN_MODES)).unwrap_or(false);
    // Only now, so that all keys are checked even if some are invalid.
    Some(Ban {
        at: node.at.clone(),
        address: address?,
        when,
        after: after?,
        within,
        ttl,
        max_ttl,
        reason,
        enforce,
    })
}
