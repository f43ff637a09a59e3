//! Regtest nodes of the real Bitcoin Core, for tests that hold the exporter's numbers against the node's own.
//!
//! What to know before counting:
//! - Probes belong to a file, not to a process: nodes that run the same file are counted together, those of
//!   a test in another thread too. [`private_copy`] gives a test a file of its own.
//! - `utxocache:*` fires for block templates and regtest's own checks of the mempool as well: a mined block
//!   adds its coinbase twice, a transaction its outputs more often. A restart, which verifies the last blocks,
//!   fires too.
//! - A node that has never seen a recent block takes itself to be in its first synchronisation and asks for
//!   no transactions. Mining one block ends that.
//! - Connected peers talk on their own (a ping every two minutes, addresses, fee filters). [`settle`] waits
//!   until all that was sent has arrived; [`Node::hang_up`] ends the talking, so that nothing changes after.
//! - [`Node::send`] of a bad transaction is one `mempool:rejected`; so is testmempoolaccept of one, but not
//!   of a package. A replacement is one `replaced`, one `removed` and one `added`.
//! - A clean stop writes the UTXO cache twice (`utxocache:flush`); the restart connects no block again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::Value;

use super::exporter::TIMEOUT;
use super::program::copy_by_another;

/// The size of the header of each message on an unencrypted connection (`-v2transport=0`), in bytes: getpeerinfo counts
/// it, the probes do not.
pub const V1_HEADER: u64 = 24;

/// The ports of all nodes, on loopback.
const PORTS: std::ops::Range<u16> = 18600..18700;

/// The error messages of bitcoind when its P2P or its RPC port is in use.
const PORT_TAKEN: [&str; 2] = ["Unable to bind", "Unable to start HTTP server"];

/// The output script of every coin created here: OP_TRUE, which anyone can spend with an empty input.
const ANYONE_CAN_SPEND: &str = "raw(51)";

/// Returns the directory with `bitcoind` and `bitcoin-cli`, which are built on first use (this takes minutes) and then
/// cached outside the tree.
pub fn binaries() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/build-bitcoind.sh");
        let output = Command::new(&script).stderr(Stdio::inherit()).output().expect("run build-bitcoind.sh");
        assert!(output.status.success(), "{} failed: its messages are above", script.display());
        PathBuf::from(String::from_utf8(output.stdout).expect("a path in UTF-8").trim_end())
    })
}

/// Returns the `bitcoind` that all tests share.
pub fn bitcoind() -> PathBuf {
    binaries().join("bitcoind")
}

/// Makes a private copy of `bitcoind` in `directory`, whose probes no other test's nodes hit.
pub fn private_copy(directory: &Path) -> PathBuf {
    let copy = directory.join("bitcoind");
    copy_by_another(&bitcoind(), &copy);
    copy
}

/// Waits until `condition` holds; fails the test, naming `what`, on timeout.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {TIMEOUT:?} in vain for {what}");
        sleep(Duration::from_millis(100));
    }
}

/// A running (or stopped) node with its own chain. Dropping it kills the process and deletes its files.
pub struct Node {
    binary: PathBuf,
    arguments: Vec<String>,
    listens: bool,
    rpc_port: u16,
    p2p_port: u16,
    process: Option<Child>,
    data: tempfile::TempDir,
}

impl Node {
    /// Starts a node that accepts no connections. `arguments` are added to bitcoind's command line.
    pub fn start(binary: &Path, arguments: &[&str]) -> Node {
        Node::new(binary, arguments, false)
    }

    /// Starts a node that other nodes can [`connect_to`](Node::connect_to).
    pub fn start_listening(binary: &Path, arguments: &[&str]) -> Node {
        Node::new(binary, arguments, true)
    }

    fn new(binary: &Path, arguments: &[&str], listens: bool) -> Node {
        let mut node = Node {
            binary: binary.to_owned(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            listens,
            rpc_port: 0,
            p2p_port: 0,
            process: None,
            data: tempfile::Builder::new().prefix("exporter-bitcoin-").tempdir().expect("make a directory"),
        };
        node.restart();
        node
    }

    /// Restarts the node on its chain after [`stop`](Node::stop) or [`kill`](Node::kill), as another process and on
    /// other ports.
    pub fn restart(&mut self) {
        assert!(self.process.is_none(), "the node still runs");
        // Another process may take a port between our check and bitcoind's bind.
        for _ in 0..5 {
            self.spawn();
            match self.wait_until_ready() {
                Ok(()) => return,
                Err(reason) if PORT_TAKEN.iter().any(|text| reason.contains(text)) => self.kill(),
                Err(reason) => panic!("bitcoind did not start: {reason}"),
            }
        }
        panic!("bitcoind found no free port in {PORTS:?}");
    }

    fn spawn(&mut self) {
        self.rpc_port = free_port();
        let mut command = Command::new(&self.binary);
        command
            .args(["-regtest", "-server=1", "-printtoconsole=0", "-par=1", "-dbcache=32"])
            .args(["-rpcbind=127.0.0.1", "-rpcallowip=127.0.0.1"])
            .arg(format!("-rpcport={}", self.rpc_port))
            .arg(format!("-datadir={}", self.data.path().display()))
            // The node must talk only to nodes that the test connects.
            .args(["-connect=0", "-dnsseed=0", "-fixedseeds=0", "-discover=0", "-listenonion=0"])
            // OP_TRUE is not a standard script. Transactions of a mempool loaded from disk would be counted again.
            .args(["-acceptnonstdtxn=1", "-persistmempool=0"]);
        if self.listens {
            self.p2p_port = free_port();
            command.args(["-listen=1".to_owned(), format!("-bind=127.0.0.1:{}", self.p2p_port)]);
        } else {
            command.arg("-listen=0");
        }
        let errors =
            File::create(self.data.path().join("stderr")).expect("make a file for bitcoind's errors");
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        self.process =
            Some(command.spawn().unwrap_or_else(|e| panic!("start {}: {e}", self.binary.display())));
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let process = self.process.as_mut().expect("just spawned");
            if let Some(status) = process.try_wait().expect("wait for bitcoind") {
                let errors = fs::read_to_string(self.data.path().join("stderr")).unwrap_or_default();
                return Err(format!("{status}: {errors}"));
            }
            match self.call(&["getblockcount"]) {
                Ok(_) => return Ok(()),
                Err(reason) if Instant::now() > deadline => return Err(reason),
                Err(_) => sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Returns the PID of the running node.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the node runs").id()
    }

    /// Returns the file that the node runs.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Returns the node's data directory.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// Stops the node cleanly and keeps its chain.
    pub fn stop(&mut self) {
        self.call(&["stop"]).expect("stop");
        let mut process = self.process.take().expect("the node runs");
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(status) = process.try_wait().expect("wait for bitcoind") {
                assert!(status.success(), "bitcoind stopped with {status}");
                return;
            }
            if Instant::now() > deadline {
                let _ = process.kill();
                let _ = process.wait();
                panic!("bitcoind did not stop");
            }
            sleep(Duration::from_millis(20));
        }
    }

    /// Kills the node with SIGKILL; unwritten data is lost.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Calls an RPC method with bitcoin-cli, which finds the cookie itself. The error is the node's message.
    pub fn call(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(binaries().join("bitcoin-cli"))
            .args(["-regtest", "-rpcclienttimeout=300"])
            .arg(format!("-datadir={}", self.data.path().display()))
            .arg(format!("-rpcport={}", self.rpc_port))
            .args(arguments)
            .output()
            .expect("run bitcoin-cli");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Opens a connection to the RPC server, to make requests without a process for each.
    pub fn rpc(&self) -> Rpc {
        let cookie = fs::read_to_string(self.data.path().join("regtest/.cookie")).expect("the cookie");
        let stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.rpc_port)).expect("connect to the RPC port");
        stream.set_read_timeout(Some(TIMEOUT)).expect("a time-out");
        stream.set_nodelay(true).expect("no delay");
        Rpc { stream: BufReader::new(stream), login: BASE64_STANDARD.encode(cookie) }
    }

    /// Calls a method that must succeed and respond with JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let answer = self.call(arguments).unwrap_or_else(|e| panic!("{arguments:?}: {e}"));
        serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{arguments:?}: {e} in {answer}"))
    }

    /// Returns the height of the best chain.
    pub fn height(&self) -> u64 {
        number(&self.json(&["getblockcount"]))
    }

    /// Returns the hash of the best block in display byte order (the reverse of the order in memory).
    pub fn best_hash(&self) -> String {
        self.call(&["getbestblockhash"]).expect("getbestblockhash")
    }

    /// Mines blocks from the mempool and returns their hashes.
    pub fn mine(&self, blocks: u32) -> Vec<String> {
        strings(&self.json(&["generatetodescriptor", &blocks.to_string(), ANYONE_CAN_SPEND]))
    }

    /// Mines one block of exactly these transactions (IDs from the mempool, or raw transactions) and returns its hash.
    pub fn mine_with(&self, transactions: &[&str]) -> String {
        let list = serde_json::to_string(transactions).expect("a list of strings");
        text(&self.json(&["generateblock", ANYONE_CAN_SPEND, &list])["hash"])
    }

    /// Returns the coinbase outputs that the next block may spend, oldest first: those of blocks 1 to height - 99,
    /// including outputs that are already spent.
    pub fn mature_coins(&self) -> Vec<Coin> {
        (1..=self.height().saturating_sub(99))
            .map(|height| {
                let hash = self.call(&["getblockhash", &height.to_string()]).expect("getblockhash");
                let coinbase = self.json(&["getblock", &hash, "2"])["tx"][0].take();
                let bitcoins = coinbase["vout"][0]["value"].as_f64().expect("an amount");
                Coin { txid: text(&coinbase["txid"]), output: 0, satoshis: (bitcoins * 1e8).round() as u64 }
            })
            .collect()
    }

    /// Submits a raw transaction; returns its ID, or why it was rejected.
    pub fn send(&self, raw: &str) -> Result<String, String> {
        self.call(&["sendrawtransaction", raw])
    }

    /// Returns the IDs of the transactions in the mempool.
    pub fn mempool(&self) -> Vec<String> {
        strings(&self.json(&["getrawmempool"]))
    }

    /// Connects to a listening node and waits until both ends have completed the handshake.
    pub fn connect_to(&self, peer: &Node) {
        assert!(peer.listens, "the peer does not listen");
        // The transport follows the node's own -v2transport setting, not the call's default.
        self.call(&["addnode", &format!("127.0.0.1:{}", peer.p2p_port), "onetry"]).expect("addnode");
        wait_for("the connection of two nodes", || {
            [self, peer].iter().all(|node| node.traffic().received.contains_key("verack"))
        });
    }

    /// Closes all connections and allows no new ones.
    pub fn hang_up(&self) {
        self.call(&["setnetworkactive", "false"]).expect("setnetworkactive");
        wait_for("the end of all connections", || {
            self.json(&["getpeerinfo"]).as_array().is_some_and(Vec::is_empty)
        });
    }

    /// Returns the bytes exchanged with the connected peers, by message type, including headers.
    pub fn traffic(&self) -> Traffic {
        let mut traffic = Traffic::default();
        for peer in self.json(&["getpeerinfo"]).as_array().expect("a list of peers") {
            for (sum, key) in
                [(&mut traffic.sent, "bytessent_per_msg"), (&mut traffic.received, "bytesrecv_per_msg")]
            {
                for (message, bytes) in peer[key].as_object().expect("bytes by message type") {
                    *sum.entry(message.clone()).or_default() += number(bytes);
                }
            }
        }
        traffic
    }

    /// Returns the total bytes sent and received since the node started, in this order.
    pub fn net_totals(&self) -> (u64, u64) {
        let totals = self.json(&["getnettotals"]);
        (number(&totals["totalbytessent"]), number(&totals["totalbytesrecv"]))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A connection to a node's RPC server.
pub struct Rpc {
    stream: BufReader<TcpStream>,
    login: String,
}

impl Rpc {
    /// Sends an arbitrary body; returns the HTTP status and body of the response.
    pub fn post(&mut self, body: &str) -> (u16, Value) {
        let (login, length) = (&self.login, body.len());
        let request = format!(
            "POST / HTTP/1.1\r\nHost: node\r\nAuthorization: Basic {login}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        self.stream.get_mut().write_all(request.as_bytes()).expect("ask the node");
        let (mut status, mut length) = (0, 0);
        loop {
            let mut line = String::new();
            assert!(
                self.stream.read_line(&mut line).expect("hear the node") > 0,
                "the node hung up on {body}"
            );
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest[..3].parse().expect("a status");
            } else if let Some(bytes) = line.strip_prefix("content-length: ") {
                length = bytes.parse().expect("a length");
            } else if line.is_empty() {
                break;
            }
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).expect("the answer");
        (status, serde_json::from_slice(&answer).unwrap_or(Value::Null))
    }
}

/// Bytes by message type.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub sent: BTreeMap<String, u64>,
    pub received: BTreeMap<String, u64>,
}

/// Waits until two nodes that are connected only to each other have received everything that the other sent and have
/// stopped talking; returns the traffic of the first.
pub fn settle(first: &Node, second: &Node) -> Traffic {
    let mut last = Traffic::default();
    wait_for("two nodes to be done talking", || {
        sleep(Duration::from_millis(400));
        let (one, two) = (first.traffic(), second.traffic());
        let quiet = one == last && one.sent == two.received && one.received == two.sent;
        last = one;
        quiet
    });
    last
}

/// An output with the script OP_TRUE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coin {
    pub txid: String,
    pub output: u32,
    pub satoshis: u64,
}

/// Builds a raw transaction that spends a coin, pays `fee` satoshis and splits the rest into two coins (with a single
/// output, it would be smaller than the 65 bytes that a node relays). Its virtual size is its size in bytes. Two
/// transactions that spend the same coin conflict: the later one replaces the earlier one if its fee is sufficiently
/// higher.
pub fn spend(coin: &Coin, fee: u64) -> String {
    let rest = coin.satoshis.checked_sub(fee).expect("a fee below the coin's value");
    // IDs are displayed in the reverse of their byte order in a transaction.
    let id: String = (0..coin.txid.len()).step_by(2).rev().map(|at| &coin.txid[at..at + 2]).collect();
    let output = |satoshis: u64| format!("{}0151", hex(&satoshis.to_le_bytes()));
    [
        "02000000".to_owned(),                                        // version 2
        format!("01{id}{}", hex(&coin.output.to_le_bytes())),         // one input: which output it spends,
        "00fdffffff".to_owned(),                                      // no script; replaceable (BIP 125)
        format!("02{}{}", output(rest / 2), output(rest - rest / 2)), // two outputs
        "00000000".to_owned(),                                        // no lock time
    ]
    .concat()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Finds a port that nothing listens on. The search starts at an offset that depends on the process ID, so that
/// concurrent test programs rarely collide.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let count = PORTS.end - PORTS.start;
    let first = (std::process::id() % u32::from(count)) as u16;
    (0..count)
        .map(|_| PORTS.start + (first + NEXT.fetch_add(1, Ordering::Relaxed) % count) % count)
        .find(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
        .unwrap_or_else(|| panic!("no free port in {PORTS:?}"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is not a number"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a string")).to_owned()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap_or_else(|| panic!("{value} is not a list")).iter().map(text).collect()
}
