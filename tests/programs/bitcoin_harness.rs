//! Tests the nodes that other tests trace, with nothing attached.

use std::path::Path;
use std::process::Command;

use crate::support::bitcoin::{
    Coin, Node, Traffic, V1_HEADER, bitcoind, private_copy, settle, spend, wait_for,
};

#[test]
fn build_has_all_probes_with_semaphores() {
    let output = Command::new("readelf").arg("-n").arg(bitcoind()).output().expect("run readelf");
    let notes = String::from_utf8(output.stdout).expect("UTF-8");
    let fields = |name: &'static str| {
        notes.lines().filter_map(move |line| line.trim().strip_prefix(name)).collect::<Vec<_>>()
    };
    let mut probes: Vec<String> = fields("Provider: ")
        .iter()
        .zip(fields("Name: "))
        .map(|(provider, name)| format!("{provider}:{name}"))
        .collect();
    probes.sort();
    assert_eq!(
        probes,
        [
            "mempool:added",
            "mempool:rejected",
            "mempool:removed",
            "mempool:replaced",
            "net:closed_connection",
            "net:evicted_inbound_connection",
            "net:inbound_connection",
            "net:inbound_message",
            "net:misbehaving_connection",
            "net:outbound_connection",
            "net:outbound_message",
            "utxocache:add",
            "utxocache:flush",
            "utxocache:spent",
            "utxocache:uncache",
            "validation:block_connected",
        ]
    );
    let without =
        fields("Location: ").iter().filter(|at| at.ends_with("Semaphore: 0x0000000000000000")).count();
    assert_eq!(without, 0, "{notes}");
}

#[test]
fn mined_blocks_survive_a_restart() {
    let mut node = Node::start(&bitcoind(), &[]);
    let hashes = node.mine(200);
    assert_eq!((hashes.len(), node.height()), (200, 200));
    assert_eq!(Some(&node.best_hash()), hashes.last());

    let before = node.pid();
    node.stop();
    node.restart();
    assert_ne!(node.pid(), before);
    assert_eq!((node.height(), Some(&node.best_hash())), (200, hashes.last()));
    assert_eq!((node.mine(5).len(), node.height()), (5, 205));
}

#[test]
fn dropped_node_leaves_nothing_behind() {
    let directory = tempfile::tempdir().expect("make a directory");
    let node = Node::start(&private_copy(directory.path()), &[]);
    assert_eq!(node.binary().parent(), Some(directory.path()));
    let (process, data) = (format!("/proc/{}", node.pid()), node.data().to_owned());
    assert!(Path::new(&process).exists() && data.join("regtest").exists());
    drop(node);
    assert!(!Path::new(&process).exists() && !data.exists());
}

#[test]
fn two_nodes_agree_on_chain_and_traffic() {
    // Unencrypted, so that the size of a message on the wire follows from its payload.
    let first = Node::start_listening(&bitcoind(), &["-v2transport=0"]);
    let second = Node::start(&bitcoind(), &["-v2transport=0"]);
    first.mine(20);
    second.connect_to(&first);
    wait_for("the second node to catch up", || second.best_hash() == first.best_hash());
    first.mine(3);
    wait_for("the second node to follow", || second.best_hash() == first.best_hash());
    assert_eq!(second.height(), 23);

    let before = settle(&first, &second);
    // Messages without a payload, sent once: only the header is counted.
    for message in ["verack", "wtxidrelay", "sendaddrv2"] {
        assert_eq!(before.sent[message], V1_HEADER, "{message}");
    }
    let sum = |bytes: &std::collections::BTreeMap<String, u64>| bytes.values().sum::<u64>();
    wait_for("the totals to be the sums of the types", || {
        let (totals, traffic) = (first.net_totals(), first.traffic());
        totals == (sum(&traffic.sent), sum(&traffic.received))
    });

    // A ping and its answer carry 8 bytes each. The node may have sent one of its own in the meantime.
    first.call(&["ping"]).expect("ping");
    wait_for("a ping to be sent", || first.traffic().sent["ping"] > before.sent["ping"]);
    let after = settle(&first, &second);
    let more = after.sent["ping"] - before.sent["ping"];
    assert!(more > 0 && more.is_multiple_of(V1_HEADER + 8), "{more}");
    assert_eq!(after.received["pong"] - before.received["pong"], more);

    second.hang_up();
    wait_for("the first node to notice", || first.traffic() == Traffic::default());
    first.mine(1);
    assert_eq!((first.height(), second.height()), (24, 23));
}

#[test]
fn transactions_are_accepted_replaced_rejected_and_mined() {
    let node = Node::start(&bitcoind(), &[]);
    node.mine(110);
    let coins = node.mature_coins();
    assert_eq!(coins.len(), 11);
    assert!(coins.iter().all(|coin| coin.satoshis == 50 * 100_000_000));

    let first = node.send(&spend(&coins[0], 1_000)).expect("accepted");
    let second = node.send(&spend(&coins[1], 1_000)).expect("accepted");
    // Its child: a transaction's outputs can be spent while it is still in the mempool.
    let half = Coin { txid: second.clone(), output: 1, satoshis: (coins[1].satoshis - 1_000) / 2 };
    let child = spend(&half, 3_000);
    let third = node.send(&child).expect("accepted");
    let entry = node.json(&["getmempoolentry", &third]);
    assert_eq!(entry["vsize"].as_u64(), Some(child.len() as u64 / 2));
    assert_eq!(entry["fees"]["base"].as_f64(), Some(0.00003));

    let replacement = node.send(&spend(&coins[0], 5_000)).expect("replaces the first");
    assert_ne!(replacement, first);
    let mut expected = vec![replacement, second, third];
    let mut waiting = node.mempool();
    expected.sort();
    waiting.sort();
    assert_eq!(waiting, expected);

    let cheaper = node.send(&spend(&coins[0], 4_000)).expect_err("pays less than what it would replace");
    assert!(cheaper.contains("insufficient fee"), "{cheaper}");
    let unknown = Coin { txid: "11".repeat(32), ..coins[0].clone() };
    let missing = node.send(&spend(&unknown, 1_000)).expect_err("spends what does not exist");
    assert!(missing.contains("bad-txns-inputs-missingorspent"), "{missing}");

    let block = node.mine_with(&[&spend(&coins[2], 1_000)]);
    assert_eq!(node.json(&["getblock", &block])["nTx"], 2);
    assert_eq!(node.mempool().len(), 3);
    let block = node.mine(1).remove(0);
    assert_eq!(node.json(&["getblock", &block])["nTx"], 4);
    assert!(node.mempool().is_empty());
}
