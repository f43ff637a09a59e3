//! Chooses the hook for received packets by its cost. Pure.
//!
//! Native XDP on a veth disables segmentation offload at its peer and reduces throughput by three quarters; on a virtio
//! NIC it disables receive offloads. TC ingress sees the same packets there at nearly no cost, and also on devices
//! without an Ethernet header, where native XDP sees none. On NICs whose driver supports XDP, packets are counted
//! before the network stack spends anything on them.

use super::abi::Link;
use super::config::{Mode, NetworkConfig, Scope};
use super::links::{IPVLAN_L3S, Interface};

/// The hook for received packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// XDP in the driver.
    Native,
    /// XDP in the network stack.
    Generic,
    /// XDP in the NIC. The configuration rejects it (`decode`); it exists for the label.
    Offload,
    /// TC ingress, by TCX.
    Tcx,
}

impl Hook {
    pub const ALL: [Self; 4] = [Self::Native, Self::Generic, Self::Offload, Self::Tcx];

    /// The label value.
    pub fn label(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offload => "offload",
            Self::Tcx => "tcx",
        }
    }

    /// The phrase used in sentences.
    pub fn phrase(self) -> &'static str {
        match self {
            Self::Native => "XDP in native mode",
            Self::Generic => "XDP in generic mode",
            Self::Offload => "XDP in the NIC",
            Self::Tcx => "TC ingress",
        }
    }
}

/// Hooks to try, best first, and why the first is best.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    pub hooks: &'static [Hook],
    pub reason: String,
}

/// Buses of paravirtual NICs.
const PARAVIRTUAL: &[&str] = &["virtio", "xen", "vmbus"];

/// Why a device of this kind never receives packets.
pub(crate) fn receives_nothing(on: &Interface) -> Option<&'static str> {
    match on.kind.as_deref() {
        Some("ifb") => {
            Some("an ifb receives nothing: packets redirected to it leave it again and are counted as sent")
        }
        Some("nlmon" | "vsockmon") => {
            Some("a monitor receives nothing: what it monitors leaves it and is counted as sent")
        }
        _ => None,
    }
}

/// Chooses the hooks for an interface.
///
/// # Errors
/// Why received packets cannot be counted, as a continuation of the interface's name.
pub(crate) fn choose(on: &Interface, mode: Mode) -> Result<Choice, String> {
    if let Some(reason) = receives_nothing(on) {
        return Err(reason.to_string());
    }
    crosses_hooks(on)?;
    if on.kind.as_deref() == Some(IPVLAN_L3S) {
        return Err(
            "an ipvlan in mode l3s receives packets behind all hooks: count them on its lower device"
                .to_string(),
        );
    }
    let chosen = |hooks, reason: &str| Ok(Choice { hooks, reason: reason.to_string() });
    match mode {
        Mode::Native if on.link != Link::Ethernet => {
            Err("native XDP does not see packets of a device without an Ethernet header; use `mode: auto`"
                .to_string())
        }
        // XDP would run in the drivers of the bond's members, which are counted as interfaces of their own.
        Mode::Native if on.kind.as_deref() == Some("bond") => Err(
            "native XDP on a bond reports the member interface; attach to the members, or use `mode: auto`"
                .to_string(),
        ),
        Mode::Native => chosen(&[Hook::Native], "as configured"),
        Mode::Generic => chosen(&[Hook::Generic], "as configured"),
        Mode::Tcx => chosen(&[Hook::Tcx], "as configured"),
        Mode::Auto if on.loopback => chosen(SOFT, "loopback"),
        Mode::Auto if on.link != Link::Ethernet => chosen(SOFT, "no Ethernet header"),
        Mode::Auto => match (&on.kind, &on.bus) {
            (Some(kind), _) => chosen(SOFT, &format!("virtual device ({kind})")),
            (None, Some(bus)) if PARAVIRTUAL.contains(&bus.as_str()) => chosen(
                SOFT,
                &format!("paravirtual device ({bus}), where native XDP turns off receive offloads"),
            ),
            (None, Some(bus)) => {
                chosen(&[Hook::Native, Hook::Tcx, Hook::Generic], &format!("hardware device ({bus})"))
            }
            (None, None) => chosen(SOFT, "virtual device"),
        },
    }
}

/// How many interfaces of a namespace get fast-path counters: as many as exist now or are configured by name.
pub(crate) fn fast_interfaces(config: &NetworkConfig, scope: &Scope, present: &[Interface]) -> usize {
    if !config.count.fits_fast_path() || config.mode == Mode::Tcx {
        return 0;
    }
    let by_xdp = |there: &&Interface| {
        choose(there, config.mode).is_ok_and(|choice| choice.hooks.first() != Some(&Hook::Tcx))
    };
    let wanted = present.iter().filter(|there| scope.wants(&there.name, &there.altnames));
    let now = wanted.filter(by_xdp).count();
    let later = scope.exact_names().filter(|name| !present.iter().any(|there| there.is_called(name))).count();
    now + later
}

/// For software devices.
const SOFT: &[Hook] = &[Hook::Tcx, Hook::Generic];

/// Whether programs on an interface see its packets at all, in either direction.
///
/// # Errors
/// Why not.
pub(crate) fn crosses_hooks(on: &Interface) -> Result<(), String> {
    if on.kind.as_deref() == Some("vrf") {
        let reason = "packets of a VRF only pass the hooks of its member interfaces; attach to those";
        return Err(reason.to_string());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(kind: Option<&str>, bus: Option<&str>, link: Link) -> Interface {
        Interface {
            name: "x".into(),
            altnames: vec![],
            index: 3,
            mtu: 1500,
            link,
            loopback: false,
            kind: kind.map(String::from),
            bus: bus.map(String::from),
            master: None,
            is_up: true,
        }
    }

    #[test]
    fn cheapest_hook_is_tried_first() {
        for (kind, bus, link, first, expected) in [
            (None, Some("pci"), Link::Ethernet, Hook::Native, "hardware"),
            (None, Some("virtio"), Link::Ethernet, Hook::Tcx, "receive offloads"),
            (Some("veth"), None, Link::Ethernet, Hook::Tcx, "veth"),
            (Some("wireguard"), None, Link::Ip, Hook::Tcx, "no Ethernet header"),
            (None, Some("usb"), Link::Ip, Hook::Tcx, "no Ethernet header"),
            (None, None, Link::Ethernet, Hook::Tcx, "virtual"),
        ] {
            let choice = choose(&interface(kind, bus, link), Mode::Auto).unwrap();
            assert_eq!(choice.hooks[0], first, "{kind:?} {bus:?}");
            assert!(choice.reason.contains(expected), "{}", choice.reason);
        }
    }

    #[test]
    fn rejects_interfaces_no_hook_sees() {
        let vrf = interface(Some("vrf"), None, Link::Ethernet);
        assert!(choose(&vrf, Mode::Auto).unwrap_err().contains("member interfaces"));
        assert!(crosses_hooks(&vrf).is_err());
        let ifb = interface(Some("ifb"), None, Link::Ethernet);
        assert!(choose(&ifb, Mode::Generic).is_err() && crosses_hooks(&ifb).is_ok());
        let l3s = interface(Some(IPVLAN_L3S), None, Link::Ethernet);
        assert!(choose(&l3s, Mode::Auto).is_err() && crosses_hooks(&l3s).is_ok());
        assert!(receives_nothing(&l3s).is_none());
        let monitor = interface(Some("nlmon"), None, Link::Opaque);
        assert!(choose(&monitor, Mode::Auto).unwrap_err().contains("counted as sent"));
        assert!(crosses_hooks(&monitor).is_ok());
        let tun = interface(Some("tun"), None, Link::Ip);
        assert!(choose(&tun, Mode::Native).unwrap_err().contains("mode: auto"));
        let bond = interface(Some("bond"), None, Link::Ethernet);
        assert!(choose(&bond, Mode::Native).unwrap_err().contains("attach to the members"));
        assert_eq!(choose(&bond, Mode::Auto).unwrap().hooks[0], Hook::Tcx);
        assert_eq!(choose(&tun, Mode::Generic).unwrap().hooks, [Hook::Generic]);
    }
}
