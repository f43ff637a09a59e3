//! Devices of every kind on Linux 6.12 in an emulated machine, because few kernels have all of their drivers: the
//! counts equal the kernel's, and bytes are as described in docs/network.md.

use std::collections::BTreeMap;

use crate::support::exposition::Metrics;
use crate::support::on_kernel::{EXPORTER, Output};

const MODULES: &str = "veth macvlan ipvlan 8021q vxlan geneve bonding bridge vrf gre ip_gre ip6_gre sit ipip ip6_tunnel \
     ip_vti esp4 xfrm_user gcm ghash-generic seqiv ctr aesni-intel fou nlmon dummy";

/// Two namespaces; each device in one sends some pings, whole and in fragments, to its counterpart in the other.
const COMMANDS: &str = r#"
IP=/usr/sbin/ip
mkdir -p /run/netns
for n in a b; do
    $IP netns add $n
    $IP netns exec $n $IP link set lo up
    $IP netns exec $n sh -c 'echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6'
done
A="$IP netns exec a $IP" B="$IP netns exec b $IP"
address() {
    $A addr add 10.$2.0.1/24 dev $1 && $B addr add 10.$2.0.2/24 dev $1 || exit 1
    $A link set $1 up && $B link set $1 up || exit 1
}
pair() { $IP link add $1 netns a type veth peer name $1 netns b; }
both() { $A link add $1 $3 && $B link add $1 ${4:-$3} || exit 1; address $1 $2; }
for n in 1 2 3 4; do pair v$n; address v$n $n; done
for n in a b; do $IP netns exec $n sh -c 'echo 0 >/proc/sys/net/ipv6/conf/v1/disable_ipv6'; done
$A addr add fd01::1/64 dev v1 nodad; $B addr add fd01::2/64 dev v1 nodad
four="local 10.1.0.1 remote 10.1.0.2" ruof="local 10.1.0.2 remote 10.1.0.1"
six="local fd01::1 remote fd01::2" xis="local fd01::2 remote fd01::1"
both gre1 10 "type gre $four" "type gre $ruof"
both gre2 11 "type gre $four key 7 csum seq" "type gre $ruof key 7 csum seq"
both gretap1 12 "type gretap $four key 9" "type gretap $ruof key 9"
both ipip1 13 "type ipip $four" "type ipip $ruof"
both ip6gre1 14 "type ip6gre $six" "type ip6gre $xis"
both ip6tnl1 15 "type ip6tnl mode any $six" "type ip6tnl mode any $xis"
both vxlan1 16 "type vxlan id 5 $four dstport 4789" "type vxlan id 5 $ruof dstport 4789"
both geneve1 17 "type geneve id 6 remote 10.1.0.2" "type geneve id 6 remote 10.1.0.1"
both vlan1 18 "link v2 type vlan id 5"
both qinq1 19 "link v2 type vlan id 6 proto 802.1ad"
both qinq2 20 "link qinq1 type vlan id 7"
both macvlan1 21 "link v2 type macvlan mode bridge"
both ipvlan1 22 "link v3 type ipvlan mode l2"
both layer1 33 "link v4 type ipvlan mode l3s"
pair m1; pair m2
$A link add bond1 type bond mode balance-rr miimon 100; $B link add bond1 type bond mode balance-rr miimon 100
for n in 1 2; do $A link set m$n master bond1; $B link set m$n master bond1; $A link set m$n up; $B link set m$n up; done
address bond1 23
pair port1; $A link add bridge1 type bridge vlan_filtering 1; $A link set port1 master bridge1
$A link set port1 up; $A link set bridge1 up; $B link set port1 up
$A addr add 10.24.0.1/24 dev bridge1; $B addr add 10.24.0.2/24 dev port1
pair member1; $A link add vrf1 type vrf table 100; $A link set vrf1 up; $A link set member1 master vrf1; address member1 25
$A route add default via 10.25.0.2 table 100 || exit 1
# What IPsec decrypts keeps the Ethernet header that it came behind; FOU has UDP between the headers; where each neighbour is
# another end of the tunnel, the outer headers come first.
both vti1 26 "type vti local 10.2.0.1 remote 10.2.0.2 key 13" "type vti local 10.2.0.2 remote 10.2.0.1 key 13"
for X in "$A" "$B"; do
    for ends in "src 10.2.0.1 dst 10.2.0.2" "src 10.2.0.2 dst 10.2.0.1"; do
        key=0x00112233445566778899aabbccddeeff00112233
        $X xfrm state add $ends proto esp spi 0x13 mode tunnel mark 13 aead 'rfc4106(gcm(aes))' $key 128 || exit 1
    done
done
policy() { $1 xfrm policy add dir $2 tmpl src $3 dst $4 proto esp mode tunnel mark 13 || exit 1; }
policy "$A" out 10.2.0.1 10.2.0.2; policy "$A" in 10.2.0.2 10.2.0.1
policy "$B" out 10.2.0.2 10.2.0.1; policy "$B" in 10.2.0.1 10.2.0.2
$A fou add port 5555 ipproto 47; $B fou add port 5555 ipproto 47
fou="encap fou encap-sport 5555 encap-dport 5555"
both fou1 27 "type gre $four key 16 $fou" "type gre $ruof key 16 $fou"
both mgre1 28 "type gre local 10.1.0.1 key 18" "type gre local 10.1.0.2 key 18"
$A neigh add 10.28.0.2 lladdr 10.1.0.2 dev mgre1; $B neigh add 10.28.0.1 lladdr 10.1.0.1 dev mgre1
both erspan1 30 "type erspan $four seq key 19 erspan_ver 1 erspan 5" "type erspan $ruof seq key 19 erspan_ver 1 erspan 5"
# What is sent into it is gone.
$A link add mute1 type dummy; $A addr add 10.32.0.1/24 dev mute1; $A link set mute1 up
$A link add nlmon1 type nlmon; $A link set nlmon1 up

echo 'network: { interfaces: ["*1", "*2", "v3"], exclude: [vrf1, "eth*"], count: { talkers: true, flows: true }, block: { entries: [203.0.113.0/24] } }' >/config.yaml
$IP netns exec a $EXPORTER --config /config.yaml >/log 2>&1 &
for second in $(seq 240); do
    $IP netns exec a wget -q -O - http://127.0.0.1:9436/ready 2>/dev/null | grep -q '^ready' && break
    sleep 1
done
# Metrics, and the kernel's own counters if nothing crossed while they were read.
both_counts() {
    for try in $(seq 60); do
        $IP netns exec a grep -vE 'lo:|nlmon' /proc/net/dev >/before
        $IP netns exec a wget -q -O /metrics http://127.0.0.1:9435/metrics || exit 1
        $IP netns exec a grep -vE 'lo:|nlmon' /proc/net/dev >/after
        cmp -s /before /after && break
        sleep 1
    done
    echo "-- metrics $1"; cat /metrics; echo "-- kernel $1"; cat /after
}
networks="1 2 3 33 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 30"
for n in $networks; do $IP netns exec b ping -c 1 -q 10.$n.0.1 >/dev/null || echo "no way to 10.$n.0.1"; done
both_counts before
for n in $networks; do
    $IP netns exec b ping -c 3 -i 0.1 -s 100 -q 10.$n.0.1 >/dev/null
    $IP netns exec b ping -c 2 -i 0.1 -s 3000 -q 10.$n.0.1 >/dev/null
done
$IP netns exec a ping -c 3 -i 0.1 -W 1 -q 10.32.0.9 >/dev/null
both_counts after
echo "-- log"
cat /log
"#;

/// Returns the kernel's counters per interface: bytes and packets received, bytes and packets sent.
fn kernel(text: &str) -> BTreeMap<String, [f64; 4]> {
    let line = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<f64> = numbers.split_whitespace().filter_map(|one| one.parse().ok()).collect();
        Some((name.trim().to_string(), [0, 1, 8, 9].map(|at| *numbers.get(at).unwrap_or(&0.0))))
    };
    text.lines().filter_map(line).collect()
}

#[test]
fn every_device_kind_matches_kernel_counters() {
    let commands = COMMANDS.replace("$EXPORTER", EXPORTER);
    let output = Output::with_modules("6.12", MODULES, &commands, &["/usr/sbin/ip"]);
    let read = |when: &str| {
        let metrics = Metrics::parse(output.part(&format!("metrics {when}")));
        let metrics = metrics.unwrap_or_else(|error| panic!("{error}"));
        (metrics, kernel(output.part(&format!("kernel {when}"))))
    };
    let log = output.part("log");
    let ((before, kernel_before), (after, kernel_after)) = (read("before"), read("after"));
    let names = ["xdp_bytes_total", "xdp_packets_total", "tc_egress_bytes_total", "tc_egress_packets_total"];
    let mut seen = 0;
    for (device, now) in &kernel_after {
        let labels = [("interface", device.as_str())];
        if after.select("xdp_packets_total", &labels).is_empty() {
            continue;
        }
        let kernel: Vec<f64> =
            now.iter().zip(kernel_before[device]).map(|(now, before)| now - before).collect();
        let grown = |name: &&str| after.sum(name, &labels) - before.sum(name, &labels);
        let ours: Vec<f64> = names.iter().map(grown).collect();
        assert_eq!([ours[1], ours[3]], [kernel[1], kernel[3]], "packets of {device}\n{log}");
        assert_eq!(after.sum("xdp_malformed_packets_total", &labels), 0.0, "{device}\n{log}");
        if device.ends_with('1') && device != "vrf1" {
            assert!(ours[1] >= 9.0 || device.starts_with("m"), "{device}: {ours:?}\n{log}");
        }
        if device == "mute1" {
            assert!(ours[3] >= 3.0, "{device}: {ours:?}\n{log}");
        }
        let kind = device.trim_end_matches(char::is_numeric);
        if matches!(kind, "vti" | "fou" | "mgre" | "gre" | "ipip") {
            // Nothing but pings crossed.
            let pings = |name: &str| {
                let labels = [labels[0], ("family", "ipv4"), ("protocol", "icmp")];
                after.sum(name, &labels) - before.sum(name, &labels)
            };
            assert_eq!([pings(names[1]), pings(names[3])], [ours[1], ours[3]], "pings of {device}\n{log}");
        }
        let more = match kind {
            "vxlan" | "geneve" => Some([14.0, 14.0]),
            "bridge" | "vlan" => Some([14.0, 0.0]),
            "gretap" | "erspan" => Some([0.0, 14.0]),
            // Tags that will yet be removed from a frame, or already have been.
            "qinq" => None,
            _ => Some([0.0, 0.0]),
        };
        if let Some(more) = more {
            let bytes = [kernel[0] + more[0] * kernel[1], kernel[2] + more[1] * kernel[3]];
            assert_eq!([ours[0], ours[2]], bytes, "bytes of {device}\n{log}");
        }
        seen += 1;
    }
    assert!(log.contains("nlmon1: counting sent packets only") && !log.contains("missed"), "{log}");
    assert!(log.contains("layer1: an ipvlan in mode l3s receives packets behind all hooks"), "{log}");
    // No rule leads to the table of a VRF by its number.
    assert!(log.contains("10.25.0.2/32 (default gateway)"), "{log}");
    // Two links of 10 Gbit/s; a veth's own speed is fictitious.
    let speed = |device| after.sum("network_speed_bytes", &[("interface", device)]);
    assert_eq!((speed("bond1"), speed("vlan1"), speed("v1")), (2.5e9, 1.25e9, 0.0), "{log}");
    assert!(seen >= 20, "only {seen} devices\n{log}");
    assert!(after.select("network_stray_packets_total", &[]).is_empty());
}
