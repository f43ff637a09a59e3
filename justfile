# What people expect to find; each is one of the scripts here.

# Build it, run it over HTTPS, print the first metrics.
run *args:
    ./run {{args}}

# All tests (root), or those whose name contains an argument.
test *args:
    ./test {{args}}

# What an ordinary user can test anywhere.
test-unprivileged *args:
    ./test --unprivileged {{args}}

# The memory that is shared with the kernel (src/mapping.rs), under Miri: rustup toolchain install nightly --component miri,rust-src
miri:
    cd tests/miri && CARGO_TARGET_DIR=../../target/miri MIRIFLAGS=-Zmiri-disable-isolation cargo +nightly miri test --locked

# Also the layouts of the ABI, the stack of free numbers and the decoder of events, within the whole program: it takes more than 40 minutes.
miri-program:
    MIRIFLAGS=-Zmiri-disable-isolation cargo +nightly miri test --locked --lib -- mapping:: abi:: decode::tests --skip net::

# One of the targets that `cargo +nightly fuzz list` lists in fuzz/ (cargo install cargo-fuzz).
fuzz target *args:
    cd fuzz && mkdir -p corpus/{{target}} && cargo +nightly fuzz run {{target}} corpus/{{target}} seeds/{{target}} {{args}}

# The documentation, as a book in target/book.
book:
    mdbook build

# What must pass before a change is taken.
ci:
    .ci/run

lint:
    cargo fmt --check
    cargo clippy --locked --all-targets -- -D warnings

fmt:
    cargo fmt
    git ls-files 'bpf/*.[ch]' 'src/*.[ch]' 'demo/*.[ch]' ':!*vmlinux*' | xargs clang-format-14 -i

# Where nothing is installed: a minimal Debian tree.
test-from-nothing *releases:
    scripts/test-from-nothing.sh {{releases}}
