//! Traces USDT probes, functions and packets and serves what it sees as Prometheus metrics.
mod skel {
    #![allow(warnings)]
    include!(concat!(env!("OUT_DIR"), "/probe.skel.rs"));
}
pub fn try_load() {
    use libbpf_rs::skel::{OpenSkel, SkelBuilder};
    libbpf_rs::set_print(Some((libbpf_rs::PrintLevel::Debug, |_, s| eprint!("{s}"))));
    let mut o = std::mem::MaybeUninit::uninit();
    let b = skel::ProbeSkelBuilder::default();
    let mut open = b.open(&mut o).unwrap();
    for mut p in open.open_object_mut().progs_mut() { p.set_log_level(4); }
    let t = std::time::Instant::now();
    match open.load() { Ok(_) => eprintln!("loaded in {:?}", t.elapsed()), Err(e) => eprintln!("{e:?}") }
}
