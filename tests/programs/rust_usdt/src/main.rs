//! Once its input ends, fires a pair of probes for each of a hundred queries, whose texts are built for the probe and
//! then dropped.

#[usdt::provider]
mod queries {
    fn query__begin(text: &str) {}
    fn query__done(rows: u64) {}
}

fn main() {
    usdt::register_probes().unwrap();
    std::io::read_to_string(std::io::stdin()).unwrap();
    for n in 0..100u64 {
        let verb = ["select * from", "insert into", "delete from"][n as usize % 3];
        queries::query__begin!(|| format!("{verb} users"));
        let scratch: Vec<String> = (0..8).map(|k| format!("another text of query {n}, number {k}")).collect();
        queries::query__done!(|| scratch.len() as u64);
    }
}
