//! What an ordinary user can run anywhere: no root, no BPF, no network packets from the exporter.
//!
//! Needs `cc`, `c++`, binutils, openssl and the packages whose programs are read: `scripts/install-deps.sh --tests`.

#[path = "../support/mod.rs"]
mod support;

mod assembly;
mod certs;
mod circles;
mod config_files;
mod documentation;
mod elf_addresses;
mod elf_approaches;
mod elf_cpp_names;
mod elf_cpp_spellings;
mod elf_debug_files;
mod elf_exits;
mod elf_jump_tables;
mod elf_names;
mod elf_oddities;
mod elf_parameters;
mod elf_programs;
mod encoder;
mod fuzz_seeds;
mod orders;
mod reference;
mod stack;
mod workflows;
