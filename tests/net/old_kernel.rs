//! The packet programs on both kernels of Debian 12, in an emulated machine: their verifiers accept less than later
//! ones, and 6.1 has no TCX.

use crate::support::exposition::Metrics;
use crate::support::on_kernel::{EXPORTER, Output};

/// The commands for the busybox shell of the emulated machine: count on the loopback interface, once for statistics
/// alone, once with everything, and once with a blocklist alone. The test splits their output at the lines `-- NAME`.
const COMMANDS: &str = r#"
mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit 1
mkdir -p /var/lib
block='block: { mode: enforce, entries: [203.0.113.0/24, 2001:db8::/32, 127.0.0.0/8] }'
for count in flags talkers blocked; do
    cat >/config.yaml <<END
network: { interfaces: [lo], mode: auto, count: { $count: true } }
END
    [ $count = flags ] || sed -i "s/mode: auto,/mode: auto, $(echo "$block" | sed 's,/,\\/,g'),/" /config.yaml
    sed -i 's/count: { blocked: true }/count: { flags: true }/' /config.yaml
    [ $count != talkers ] || sed -i 's/talkers: true/talkers: true, flows: true, tcp: true, drop_reasons: true, cgroups: true, processes: true, dns: true, tcp_trouble: true, cidrs: { local: 127.0.0.0\/8 }/' /config.yaml
    $EXPORTER --config /config.yaml >/log-$count 2>&1 &
    exporter=$!
    # An emulated machine may be slow.
    for second in $(seq 240); do
        grep -q 'Waiting for events' /log-$count 2>/dev/null && break
        sleep 1
    done
    ping -c 10 -i 0.1 -q 127.0.0.1 >/dev/null || exit 1
    for metrics in 1 2; do
        wget -q -O /metrics http://127.0.0.1:9435/metrics || exit 1
    done
    kill $exporter
    wait $exporter
    echo "-- $count"
    cat /metrics
    echo "-- log of $count"
    cat /log-$count
done
mount -t bpf bpf /sys/fs/bpf
echo 'network: { interfaces: [lo] }
state: pinned' >/config.yaml
for turn in 1 2; do
    $EXPORTER --config /config.yaml >/log-pinned-$turn 2>&1 &
    exporter=$!
    for second in $(seq 240); do
        grep -q 'Waiting for events' /log-pinned-$turn 2>/dev/null && break
        sleep 1
    done
    [ $turn = 1 ] || wget -q -O /metrics http://127.0.0.1:9435/metrics || exit 1
    kill -9 $exporter
    wait $exporter
    ping -c 10 -i 0.1 -q 127.0.0.1 >/dev/null || exit 1
done
$EXPORTER unpin /sys/fs/bpf/exporter-9435 || exit 1
echo "-- pinned"
cat /metrics
echo "-- log of pinned"
cat /log-pinned-2
"#;

fn packets_are_counted_on(kernel: &str, hook: &str) {
    // Before 6.6, egress is counted by a TC filter.
    // Socket diagnostics find SSH connections to protect.
    let modules = "sch_ingress cls_bpf tcp_diag";
    let output = Output::with_modules(kernel, modules, &COMMANDS.replace("$EXPORTER", EXPORTER), &[]);
    for count in ["flags", "talkers", "blocked"] {
        let (metrics, log) = (output.part(count), output.part(&format!("log of {count}")));
        let metrics = Metrics::parse(metrics).unwrap_or_else(|error| panic!("{error}"));
        assert!(log.contains(&format!("lo: counting packets, {hook} (")), "{count}: {log}");
        assert_eq!(metrics.sum("tc_egress_packets_total", &[("protocol", "icmp")]), 20.0, "{log}");
        assert!(!log.contains("[WARNING]"), "{log}");
        // Ten requests and ten replies take the slow path, TCP the fast one.
        assert_eq!(metrics.sum("xdp_packets_total", &[("protocol", "icmp")]), 20.0, "{log}");
        assert!(metrics.sum("xdp_packets_total", &[("protocol", "tcp")]) > 10.0, "{log}");
        assert_eq!(metrics.sum("xdp_malformed_packets_total", &[]), 0.0, "{log}");
        assert_eq!(
            metrics.sum("xdp_packet_size_bytes_count", &[("direction", "ingress")]),
            metrics.sum("xdp_packets_total", &[])
        );
        if count != "flags" {
            assert_eq!(metrics.sum("xdp_blocklist_entries", &[("source", "config")]), 3.0, "{log}");
            assert_eq!(metrics.sum("xdp_drops_total", &[]), 0.0, "loopback is never dropped");
        }
        if count == "talkers" {
            assert!(metrics.sum("network_tcp_handshake_duration_seconds_count", &[]) >= 2.0, "{log}");
            assert!(metrics.sum("network_tcp_state_changes_total", &[("to", "established")]) >= 2.0);
            let local = metrics.sum("network_cidr_packets_total", &[("cidr", "local")]);
            assert!(
                local >= 40.0 && metrics.sum("network_cidr_packets_total", &[("cidr", "other")]) == 0.0,
                "{local}"
            );
            assert!(!metrics.select("network_kernel_drops_total", &[]).is_empty(), "{log}");
            let sockets =
                metrics.sum("network_cgroup_packets_total", &[("unit", "/"), ("direction", "egress")]);
            assert!(sockets > 10.0 && !metrics.select("network_dns_queries_total", &[]).is_empty(), "{log}");
        }
    }
    // Packets that passed while no exporter was running, in both directions.
    let (metrics, log) = (output.part("pinned"), output.part("log of pinned"));
    let metrics = Metrics::parse(metrics).unwrap_or_else(|error| panic!("{error}"));
    assert!(log.contains("Took over the packet counters"), "{log}");
    for name in ["xdp_packets_total", "tc_egress_packets_total"] {
        assert_eq!(metrics.sum(name, &[("protocol", "icmp")]), 20.0, "{name}: {log}");
    }
}

#[test]
fn linux_6_1() {
    packets_are_counted_on("6.1", "XDP in generic mode");
}

#[test]
fn linux_6_12() {
    packets_are_counted_on("6.12", "TC ingress");
}
