//! Real Bitcoin Core nodes on regtest: the exporter's numbers against the nodes' own. Needs root.

use std::collections::BTreeMap;

use crate::support::bitcoin::{Coin, Node, Traffic, V1_HEADER, bitcoind, settle, spend};
use crate::support::exporter::{Exporter, Place, Setup, wait_for};
use crate::support::exposition::Metrics;
use crate::support::names::listed_names_are_accepted;

const UDP_PROBES: [&str; 5] = [
    "udp:block_reconstructed",
    "udp:block_reconstruction_detail",
    "udp:block_send_start",
    "udp:block_race_winner",
    "udp:block_race_time",
];

#[test]
fn counts_two_hundred_blocks_across_a_node_restart() {
    let place = Place::new();
    let binary = place.copy_of(&bitcoind(), "bitcoind");
    let exporter = Setup::fibre(&place, &binary).arguments(&["--verbose"]).start();
    exporter.wait_until_ready();

    let mut node = Node::start(&binary, &[]);
    node.mine(100);
    node.stop();
    node.restart();
    node.mine(100);
    assert_eq!(node.height(), 200);

    let scrape = exporter.scrape();
    for (name, expected) in [
        ("bitcoin_blocks_connected_total", 200.0),
        ("fibre_last_block_height", 200.0),
        // Each block has one transaction: its coinbase.
        ("bitcoin_block_tx_count_sum", 200.0),
        ("bitcoin_block_tx_count_count", 200.0),
        ("bitcoin_block_connection_duration_seconds_count", 200.0),
    ] {
        assert_eq!(scrape.value(name, &[("node", "demo")]), expected, "{name}");
    }
    assert_eq!(scrape.value("bitcoin_block_tx_count_bucket", &[("le", "1")]), 200.0);
    assert!(scrape.value("bitcoin_block_connection_duration_seconds_sum", &[]) > 0.0);
    exporter.wait_for_log("Block connected: height=200 tx_count=1 connection_time=");
    says_what_is_absent(&exporter, &scrape);

    // A block that a reorganization removes from the chain and restores is connected twice.
    let tip = node.best_hash();
    node.call(&["invalidateblock", &tip]).expect("invalidateblock");
    node.call(&["reconsiderblock", &tip]).expect("reconsiderblock");
    assert_eq!(node.best_hash(), tip);
    assert_eq!(exporter.scrape().value("bitcoin_blocks_connected_total", &[]), 201.0);
}

/// The node has no FIBRE: this is reported everywhere, and is not an error.
fn says_what_is_absent(exporter: &Exporter, scrape: &Metrics) {
    assert_eq!(exporter.health("/ready"), (200, "ready\n".to_owned()));
    assert_eq!(scrape.value("fibre_exporter_probes_attached", &[]), 1.0);
    exporter.wait_for_log("[INFO] exporter: Attached 1/6 probes");
    for probe in UDP_PROBES {
        assert_eq!(scrape.value("fibre_exporter_probe_attached", &[("probe", probe)]), 0.0);
        let state = scrape.select("fibre_exporter_probe_state", &[("probe", probe)]);
        assert_eq!((state.len(), state[0].0["state"].as_str()), (1, "absent"), "{state:?}");
        assert!(state[0].0["reason"].contains("udp"), "{state:?}");
        let line = format!("[WARNING] exporter: Probe {probe} is absent: {}", state[0].0["reason"]);
        exporter.wait_for_log(&line);
    }
    let fibre: Vec<_> = scrape
        .measured()
        .0
        .into_keys()
        .filter(|(name, _)| name.starts_with("fibre_") && name != "fibre_last_block_height")
        .collect();
    assert!(fibre.is_empty(), "a zero would say that nothing came over FIBRE: {fibre:?}");
}

/// Traces each of these files with the profile `bitcoin-core`; its series have the label `file`.
fn bitcoin_core<'a>(place: &'a Place, names: &[&str]) -> Setup<'a> {
    let targets: String = names
        .iter()
        .map(|name| {
            let binary = place.copy_of(&bitcoind(), name);
            let binary = binary.display();
            format!("- {{name: {name}, binary: {binary}, profile: bitcoin-core, labels: {{file: {name}}}}}\n")
        })
        .collect();
    Setup::new(place, format!("node_name: demo\ntargets:\n{targets}"))
}

/// Returns the values of a metric of one file by one of its labels.
fn by(label: &str, scrape: &Metrics, name: &str, labels: &[(&str, &str)]) -> BTreeMap<String, u64> {
    let rows = scrape.select(name, labels);
    rows.into_iter().map(|(labels, value)| (labels[label].clone(), value as u64)).collect()
}

/// Returns the messages and their bytes by type, as seen by the probes of one file.
fn messages(scrape: &Metrics, file: &str, direction: &str) -> [BTreeMap<String, u64>; 2] {
    ["bitcoin_net_messages_total", "bitcoin_net_message_bytes_total"]
        .map(|name| by("message", scrape, name, &[("file", file), ("direction", direction)]))
}

#[test]
fn sent_and_received_traffic_agree_by_type_and_bytes() {
    let place = Place::new();
    let exporter = bitcoin_core(&place, &["first", "second"]).start();
    exporter.wait_until_ready();
    assert_eq!(exporter.log().matches("Attached 16/16 probes").count(), 2, "{}", exporter.log());

    // Unencrypted, so that the size of a message on the wire follows from its payload.
    let first = Node::start_listening(&place.path("first"), &["-v2transport=0"]);
    let second = Node::start(&place.path("second"), &["-v2transport=0"]);
    first.mine(110);
    second.connect_to(&first);
    wait_for("the second node to catch up", || second.best_hash() == first.best_hash());
    // Transactions travel too, and back in a block.
    first.mine(1);
    wait_for("the second node to follow", || second.best_hash() == first.best_hash());
    let coins = first.mature_coins();
    let transaction = first.send(&spend(&coins[0], 10_000)).expect("accepted");
    wait_for("the transaction to arrive", || second.mempool() == [transaction.as_str()]);
    first.mine(1);
    wait_for("the second node to follow", || second.best_hash() == first.best_hash());

    // The nodes may communicate during the scrape; then repeat it.
    let (scrape, traffic) = loop {
        let before = settle(&first, &second);
        let scrape = exporter.scrape();
        if first.traffic() == before {
            break (scrape, before);
        }
    };
    let sent = messages(&scrape, "first", "outbound");
    let received = messages(&scrape, "first", "inbound");
    assert_eq!(sent, messages(&scrape, "second", "inbound"));
    assert_eq!(received, messages(&scrape, "second", "outbound"));
    assert!(sent[0]["cmpctblock"] + sent[0]["headers"] > 0 && sent[0]["tx"] == 1, "{sent:?}");
    assert_eq!(Traffic { sent: on_the_wire(&sent), received: on_the_wire(&received) }, traffic);

    for file in ["first", "second"] {
        assert_eq!(scrape.value("bitcoin_blocks_connected_total", &[("file", file)]), 112.0);
        assert_eq!(scrape.value("bitcoin_last_block_height", &[("file", file)]), 112.0);
        assert_eq!(scrape.value("bitcoin_block_tx_count_sum", &[("file", file)]), 113.0);
        assert_eq!(scrape.value("bitcoin_block_inputs_total", &[("file", file)]), 113.0);
    }
    connections_open_and_close(&exporter, &first, &second);
}

/// Adds each message's header, which is on the wire too.
fn on_the_wire([count, payload]: &[BTreeMap<String, u64>; 2]) -> BTreeMap<String, u64> {
    count.iter().map(|(kind, count)| (kind.clone(), count * V1_HEADER + payload[kind])).collect()
}

fn connections_open_and_close(exporter: &Exporter, first: &Node, second: &Node) {
    let kinds = [("first", "inbound"), ("second", "manual")];
    let counted = |scrape: &Metrics, what: &str| -> Vec<f64> {
        let name = format!("bitcoin_net_connections_{what}_total");
        let labels = |file, kind| [("file", file), ("type", kind), ("network", "not_publicly_routable")];
        kinds.iter().map(|(file, kind)| scrape.sum(&name, &labels(*file, *kind))).collect()
    };
    let scrape = exporter.scrape();
    assert_eq!((counted(&scrape, "opened"), counted(&scrape, "closed")), (vec![1.0; 2], vec![0.0; 2]));
    second.hang_up();
    wait_for("the first node to notice", || first.traffic() == Traffic::default());
    let scrape = exporter.scrape();
    assert_eq!((counted(&scrape, "opened"), counted(&scrape, "closed")), (vec![1.0; 2], vec![1.0; 2]));
    for what in ["opened", "closed"] {
        assert_eq!(scrape.sum(&format!("bitcoin_net_connections_{what}_total"), &[]), 2.0);
    }
}

#[test]
fn mempool_metrics_match_the_transactions() {
    let place = Place::new();
    let exporter = bitcoin_core(&place, &["bitcoind"]).start();
    exporter.wait_until_ready();
    let mut node = Node::start(&place.path("bitcoind"), &[]);
    node.mine(110);
    let coins = node.mature_coins();
    let unused = exporter.scrape();
    assert_eq!(unused.sum("bitcoin_mempool_added_transactions_total", &[]), 0.0);

    // Accepted: four, one of which replaces the first.
    let half =
        |txid: &str| Coin { txid: txid.to_owned(), output: 1, satoshis: (coins[1].satoshis - 1_000) / 2 };
    let first = spend(&coins[0], 1_000);
    let second = spend(&coins[1], 2_000);
    let mut accepted = vec![(first.clone(), 1_000), (second, 2_000)];
    node.send(&first).expect("accepted");
    let parent = node.send(&accepted[1].0).expect("accepted");
    let child = Coin { satoshis: (coins[1].satoshis - 2_000) / 2, ..half(&parent) };
    accepted.push((spend(&child, 3_000), 3_000));
    node.send(&accepted[2].0).expect("accepted");
    accepted.push((spend(&coins[0], 5_000), 5_000));
    node.send(&accepted[3].0).expect("replaces the first");
    // Rejected: two, and one that is only a trial.
    node.send(&spend(&coins[0], 4_000)).expect_err("pays less than what it would replace");
    let unknown = Coin { txid: "11".repeat(32), ..coins[0].clone() };
    node.send(&spend(&unknown, 1_000)).expect_err("spends what does not exist");
    let trial = serde_json::to_string(&[spend(&unknown, 2_000)]).expect("a list of strings");
    assert_eq!(node.json(&["testmempoolaccept", &trial])[0]["allowed"], false);
    // Mined: the remaining ones.
    assert_eq!(node.mempool().len(), 3);
    node.mine(1);
    assert!(node.mempool().is_empty());

    let scrape = exporter.scrape();
    let value =
        |name: &str, labels: &[(&str, &str)]| scrape.value(&format!("bitcoin_mempool_{name}"), labels) as u64;
    let size = |(raw, _): &(String, u64)| raw.len() as u64 / 2;
    let fee = |(_, fee): &(String, u64)| *fee;
    let (replaced, mined) = accepted.split_at(1);
    for (what, labels, transactions) in [
        ("added", &[][..], &accepted[..]),
        ("replaced", &[], replaced),
        ("removed", &[("reason", "replaced")], replaced),
        ("removed", &[("reason", "block")], mined),
    ] {
        let found = ["transactions", "vbytes", "fee_satoshis"]
            .map(|unit| value(&format!("{what}_{unit}_total"), labels));
        let expected = [
            transactions.len() as u64,
            transactions.iter().map(size).sum(),
            transactions.iter().map(fee).sum(),
        ];
        assert_eq!(found, expected, "{what} {labels:?}");
    }
    assert_eq!(scrape.sum("bitcoin_mempool_removed_transactions_total", &[]), 4.0);
    assert_eq!(value("transaction_vbytes_count", &[]), 4);
    let rejected = by("reason", &scrape, "bitcoin_mempool_rejected_transactions_total", &[]);
    let expected = [("bad-txns-inputs-missingorspent", 2), ("insufficient fee", 1)];
    assert_eq!(rejected, expected.map(|(reason, count)| (reason.to_owned(), count)).into());
    assert_eq!(scrape.value("bitcoin_block_tx_count_sum", &[]), 114.0);
    assert_eq!(scrape.value("bitcoin_block_inputs_total", &[]), 114.0);

    utxo_cache(&exporter, &mut node);
}

/// The cache is written on a clean stop; before that, each coin of the chain has been added.
fn utxo_cache(exporter: &Exporter, node: &mut Node) {
    let unspent = node.json(&["gettxoutsetinfo"])["txouts"].as_u64().expect("a number") as f64;
    let count = |what: &str| {
        let scrape = exporter.scrape();
        scrape.sum(&format!("bitcoin_utxocache_{what}"), &[])
    };
    // Block templates and regtest's own checks add and spend in caches of their own.
    assert!(count("coins_added_total") >= unspent + count("coins_spent_total") / 2.0);
    assert!(count("coins_spent_total") >= 4.0);
    assert_eq!(count("added_satoshis_total").rem_euclid(1.0), 0.0);
    let before = count("flush_duration_seconds_count");
    node.stop();
    assert_eq!(count("flush_duration_seconds_count"), before + 2.0);
    assert_eq!(exporter.scrape().sum("fibre_exporter_errors_total", &[]), 0.0);
}

#[test]
fn every_listed_bitcoind_name_is_accepted() {
    listed_names_are_accepted(&bitcoind(), 5000);
}
