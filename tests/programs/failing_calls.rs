//! Calls that end in an exception, through functions whose durations are measured: the node survives, its answers are
//! right, and entries and returns match the requests.
//!
//! The node throws through nearly every function on a call's path when something about the call is wrong. A tracer that
//! puts its own addresses on the stack kills the node with the first such call. `HARM_CALLS=1000000` in the environment
//! makes a million.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::support::bitcoin::{Node, Rpc, bitcoind};
use crate::support::exporter::{Exporter, Place, Setup, wait_for};
use crate::support::harm;

/// Functions on a call's path through the node, from the outermost to the innermost.
const FUNCTIONS: [&str; 8] = [
    "HTTPReq_JSONRPC",
    "ExecuteHTTPRPC",
    "JSONRPCRequest::parse",
    "JSONRPCExec",
    "CRPCTable::execute",
    "ExecuteCommand",
    "RPCMethod::HandleRequest",
    "JSONRPCError",
];

/// Other functions on the path, most of which are also left by exceptions: tracing them must do no harm.
const OTHERS: [&str; 2] = ["RPCMethod::*", "UniValue::get_*"];

/// The number of requests, of one or three calls each.
const CALLS: u64 = 2_800;

/// A body, the HTTP status and the error code of its answer (0 for none), and how often each of [`FUNCTIONS`] is
/// entered and returns.
type Request = (Value, u16, i64, [(u64, u64); 8]);

const ONCE: (u64, u64) = (1, 1);
const THROWS: (u64, u64) = (1, 0);
const NEVER: (u64, u64) = (0, 0);

fn requests() -> Vec<Request> {
    let out_of_range = json!({ "method": "getblockhash", "params": [99_999_999] });
    let unknown = json!({ "method": "no_such_method" });
    // JSON-RPC 2.0 calls are answered where they are made, so the exception propagates less far.
    let wrong_type = json!({ "jsonrpc": "2.0", "id": 1, "method": "getblockhash", "params": ["text"] });
    let good = json!({ "method": "getblockcount" });
    let no_parameters = json!({ "method": "getblockhash" });
    let batch = json!([good, no_parameters, unknown]);
    vec![
        (good, 200, 0, [ONCE, ONCE, ONCE, ONCE, ONCE, ONCE, ONCE, NEVER]),
        (out_of_range, 500, -8, [ONCE, ONCE, ONCE, THROWS, THROWS, THROWS, THROWS, ONCE]),
        (unknown, 404, -32601, [ONCE, ONCE, ONCE, THROWS, THROWS, NEVER, NEVER, ONCE]),
        (wrong_type, 200, -3, [ONCE, ONCE, ONCE, ONCE, THROWS, THROWS, THROWS, ONCE]),
        (batch, 200, 0, [ONCE, ONCE, (3, 3), (3, 3), (3, 1), (2, 1), (2, 1), (2, 2)]),
        (json!({ "id": 1 }), 400, -32600, [ONCE, ONCE, THROWS, NEVER, NEVER, NEVER, NEVER, ONCE]),
        (json!(3), 500, -32700, [ONCE, ONCE, NEVER, NEVER, NEVER, NEVER, NEVER, ONCE]),
    ]
}

fn configuration(attach: &str, binary: &str) -> String {
    let mut yaml = format!(
        "attach: {attach}\nlimits: {{ overhead: off }}\ntargets:\n- name: node\n  binary: {binary}\n  probes:\n"
    );
    for (n, function) in FUNCTIONS.iter().enumerate() {
        writeln!(
            yaml,
            "  - function: \"{function}\"\n    metrics: [{{ histogram: f{n}_seconds, value: duration, buckets: [10] }}]"
        )
        .unwrap();
    }
    for (n, glob) in OTHERS.iter().enumerate() {
        writeln!(
            yaml,
            "  - function: \"{glob}\"\n    metrics: [{{ histogram: g{n}_seconds, value: duration, labels: {{ function: function }} }}]"
        )
        .unwrap();
    }
    yaml
}

/// Returns the entries and returns of each function so far.
fn counted(exporter: &Exporter) -> [(u64, u64); 8] {
    let scrape = exporter.scrape();
    let mut rows = [(0, 0); 8];
    for (row, function) in rows.iter_mut().zip(FUNCTIONS) {
        let hits = |probe: &str, name: &str| scrape.sum(name, &[("probe", probe)]) as u64;
        row.0 = hits(function, "fibre_exporter_probe_aggregated_total");
        row.1 = hits(&format!("{function}:return"), "fibre_exporter_probe_aggregated_total");
        let lost = hits(function, "fibre_exporter_probe_lost_total")
            + hits(&format!("{function}:return"), "fibre_exporter_probe_lost_total");
        assert_eq!(lost, 0, "{function}");
    }
    rows
}

fn error_of(answer: &Value) -> i64 {
    answer["error"]["code"].as_i64().unwrap_or(0)
}

/// Sends each body and checks the node's answer.
fn ask_all(rpc: &mut Rpc, requests: &[(String, u16, i64)], height: u64) {
    for (body, status, error) in requests {
        let (told, answer) = rpc.post(body);
        assert_eq!((told, error_of(&answer)), (*status, *error), "{body}: {answer}");
        if let [good, bad, unknown] = answer.as_array().map_or(&[][..], Vec::as_slice) {
            assert_eq!(good["result"].as_u64(), Some(height), "{answer}");
            assert_eq!((error_of(bad), error_of(unknown)), (-1, -32601), "{answer}");
        } else if *error == 0 {
            assert_eq!(answer["result"].as_u64(), Some(height), "{body}: {answer}");
        }
    }
}

fn calls_that_fail(attach: &str) {
    let place = Place::new();
    let binary = place.copy_of(&bitcoind(), "bitcoind");
    let exporter = Setup::new(&place, configuration(attach, &binary.display().to_string())).start();
    exporter.wait_until_ready();
    let mut node = Node::start(&binary, &[]);
    node.mine(5);
    let pid = node.pid();

    let requests = requests();
    let rounds = harm::calls(CALLS).div_ceil(requests.len() as u64);
    let mut expected = settled(&exporter);
    for (_, _, _, effect) in &requests {
        for ((entered, returned), (enters, returns)) in expected.iter_mut().zip(effect) {
            *entered += enters * rounds;
            *returned += returns * rounds;
        }
    }
    let bodies: Vec<_> =
        requests.iter().map(|(body, status, error, _)| (body.to_string(), *status, *error)).collect();
    let mut rpc = node.rpc();
    for _ in 0..rounds {
        ask_all(&mut rpc, &bodies, 5);
    }
    let seen = settled(&exporter);
    let named = |rows: [(u64, u64); 8]| FUNCTIONS.into_iter().zip(rows).collect::<BTreeMap<_, _>>();
    assert_eq!(named(seen), named(expected), "{attach}");
    assert_eq!(node.pid(), pid);
    node.stop();
}

/// Returns the counts once no call is in progress: an answer is sent before the functions that produced it return.
fn settled(exporter: &Exporter) -> [(u64, u64); 8] {
    let mut last = counted(exporter);
    wait_for("the node to be at rest", || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        let now = counted(exporter);
        std::mem::replace(&mut last, now) == now
    });
    last
}

#[test]
fn failing_calls_with_uprobe_multi() {
    calls_that_fail("auto");
}

#[test]
fn failing_calls_with_perf_events() {
    calls_that_fail("perf");
}
