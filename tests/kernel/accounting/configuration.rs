//! Random configurations for the programs `forms` and `forms-no-pie`.

use std::fmt::Write;
use std::path::Path;

/// Probes with one argument, and whether it is text.
const FORMS: [(&str, bool); 10] = [
    ("i32", false),
    ("u8", false),
    ("i64", false),
    ("plain", false),
    ("sites", false),
    ("string", true),
    ("cold", true),
    ("null", true),
    ("plain_string", true),
    ("long_string", true),
];

/// The SplitMix64 generator.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % n
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

/// The role of a planned probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A standalone USDT probe.
    Usdt,
    /// The entry and the return of a function.
    Call,
    Return,
    /// The two ends of a span from one USDT probe to another.
    Start,
    End,
}

impl Role {
    pub fn is_start(self) -> bool {
        matches!(self, Role::Call | Role::Start)
    }
}

/// One probe of the plan.
pub struct Probed {
    /// The form to fire for hitting this probe exactly once.
    pub form: &'static str,
    pub role: Role,
    /// The `N` of its metrics' names, which begin with `pN_`.
    pub number: usize,
    /// The rest of the names of the first metrics, each of which counts one per hit.
    pub counting: Vec<&'static str>,
    /// Whether there is always room for the start of a span.
    pub has_room: bool,
}

/// Returns a random configuration and its probes as they are planned.
pub fn configuration(random: &mut Random, binary: &Path, pid: Option<u32>) -> (String, Vec<Probed>) {
    let mut text = format!(
        "node_name: test\nattach: {}\nverbose: {}\nring: {{ size: {}, poll: {}ms }}\nlimits: {{ label_values: {} }}\n\
         targets:\n- name: forms\n  binary: {}\n",
        random.pick(&["auto", "auto", "perf"]),
        random.chance(4),
        random.pick(&[4096, 4096, 8192, 65_536, 1 << 20]),
        random.pick(&[1, 10, 100]),
        random.pick(&[1, 2, 5, 200]),
        binary.display()
    );
    if let Some(pid) = pid {
        writeln!(text, "  pid: {pid}").unwrap();
    }
    text += "  probes:\n";
    let mut probed = Vec::new();
    for number in 0..1 + random.below(5) as usize {
        let kind: fn(&mut Random, &mut String, usize, &mut Vec<Probed>) =
            random.pick(&[usdt, usdt, function, span]);
        kind(random, &mut text, number, &mut probed);
    }
    // Starts that never end fill up the table that all spans share.
    if text.contains("by: shot") {
        probed.iter_mut().for_each(|probed| probed.has_room = false);
    }
    (text, probed)
}

/// Adds a probe with metrics of every kind.
fn usdt(random: &mut Random, text: &mut String, n: usize, probed: &mut Vec<Probed>) {
    let (form, is_text) = random.pick(&FORMS);
    let kind = if is_text { format!("string, max: {}", random.pick(&[8, 64, 200])) } else { "int".into() };
    writeln!(text, "  - on: usdt:forms:{form}\n    args: {{ v: {{ index: 0, type: {kind} }} }}").unwrap();
    writeln!(text, "    metrics:\n    - counter: p{n}_hits_total").unwrap();
    // Such a pattern is matched in user space only.
    let glob = if random.chance(4) { "match: { \"x*y\": z }, " } else { "" };
    let glob = if is_text { glob } else { "" };
    let limit = limit(random);
    writeln!(
        text,
        "    - {{ counter: p{n}_by_total, labels: {{ v: {{ value: v, {glob}{limit} }}, cpu: cpu }} }}"
    )
    .unwrap();
    let mut counting = vec!["hits_total", "by_total"];
    if random.chance(2) {
        writeln!(text, "    - {{ counter: p{n}_pid_total, labels: {{ p: pid, c: comm }} }}").unwrap();
        counting.push("pid_total");
    }
    let more: &[&str] = if is_text {
        &["counter: p_is_total, when: v == \"a string\"", "counter: p_comm_total, labels: { c: comm, v: v }"]
    } else {
        &[
            "counter: p_sum_total, value: v",
            "gauge: p_last, value: v, labels: { v: v }",
            "gauge: p_max, value: v, mode: max",
            "histogram: p_values, value: v, buckets: [-5, 0, 5, 100], labels: { v: { value: v, limit: 3 } }",
            "counter: p_some_total, when: v > 3",
        ]
    };
    for _ in 0..random.below(4) {
        let metric = random.pick(more).replace(" p_", &format!(" p{n}_{}_", random.below(1 << 32)));
        writeln!(text, "    - {{ {metric} }}").unwrap();
    }
    probed.push(Probed { form, role: Role::Usdt, number: n, counting, has_room: true });
}

fn limit(random: &mut Random) -> &'static str {
    random.pick(&["limit: 1", "limit: 2", "limit: 100", ""])
}

/// Adds a function's durations and its return value, which is 1 for each shot. With an argument in a label, the start
/// is stored for the return; without one, the kernel measures the time itself where it can.
fn function(random: &mut Random, text: &mut String, n: usize, probed: &mut Vec<Probed>) {
    let (form, _) = random.pick(&FORMS);
    let by_shot = random.chance(2);
    let args = if by_shot { "    args: { shot: { index: 0, type: u64 } }\n" } else { "" };
    let shot = format!("{{ s: {{ value: shot, {} }} }}", limit(random));
    let labels = if by_shot {
        &shot
    } else {
        random.pick(&["{}", "{ f: function, c: comm }", "{ r: retval, t: tid }"])
    };
    let calls = random.pick(&["{}", "{ p: pid }", "{ c: comm, f: function }"]);
    writeln!(
        text,
        "  - function: fire_{form}\n    returns: u8\n{args}    metrics:\n    \
         - {{ counter: p{n}_returned_total, value: retval, labels: {{ r: retval }} }}\n    \
         - {{ histogram: p{n}_seconds, value: duration, buckets: [1us, 1ms, 100], labels: {labels} }}\n    \
         - {{ counter: p{n}_hits_total, labels: {calls} }}"
    )
    .unwrap();
    let of = |role, counting| Probed { form, role, number: n, counting, has_room: true };
    let series_of_threads_go = labels.contains("tid");
    let calls_go = calls.contains("pid");
    probed.push(of(Role::Call, if calls_go { vec![] } else { vec!["hits_total"] }));
    let mut counting = vec!["returned_total"];
    if !series_of_threads_go {
        counting.push("seconds_count");
    }
    probed.push(of(Role::Return, counting));
}

/// Adds a span from one probe to another: keyed by thread, by a value of which there are five, or by the number of the
/// shot, of which there are more than the table of starts can hold.
fn span(random: &mut Random, text: &mut String, n: usize, probed: &mut Vec<Probed>) {
    let (from, to, by) = match random.below(4) {
        0 => ("plain", "many", "    by: shot\n    args: { shot: { index: 0, to_index: 7 } }\n"),
        1 => ("i32", "i64", "    by: v\n    args: { v: 0 }\n"),
        2 => ("sites", "u8", ""),
        _ => ("i32", "string", ""),
    };
    writeln!(text, "  - span: p{n}_seconds\n    from: usdt:forms:{from}\n    to: usdt:forms:{to}\n{by}")
        .unwrap();
    let of = |form, role, counting| Probed { form, role, number: n, counting, has_room: true };
    probed.push(of(from, Role::Start, vec![]));
    probed.push(of(to, Role::End, vec!["seconds_count"]));
}
