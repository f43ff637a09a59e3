use super::super::{MAX_DEMANGLED, Signature, demangle};

fn whole(symbol: &str) -> Option<String> {
    demangle(symbol, Signature::Whole)
}

/// Names as `c++filt` 2.40 writes them.
#[test]
fn names_are_written_as_by_nm() {
    for (symbol, name) in [
        ("_ZN3FooC1IiEET_", "Foo::Foo<int>(int)"),
        ("_ZN3FooIiED0Ev", "Foo<int>::~Foo()"),
        ("_ZN1KcvT_IPiEEv", "K::operator int*<int*>()"),
        ("_ZNK1Kcv3BoxIT_EI3OneEEv", "K::operator Box<One><One>() const"),
        (
            "_ZN1K2emIJidRA2_KcEEEvDpOT_",
            "void K::em<int, double, char const (&) [2]>(int&&, double&&, char const (&) [2])",
        ),
        ("_ZN1K2emIJEEEvDpOT_", "void K::em<>()"),
        ("_Z6ret_fni", "ret_fn(int)"),
        ("_Z8ret_fn_tIiEPFviET_", "void (*ret_fn_t<int>(int))(int)"),
        ("_Z7ret_arrIiEPA3_iT_", "int (*ret_arr<int>(int)) [3]"),
        ("_Z1fPPFivE", "f(int (**)())"),
        ("_Z1fM1AKFvvERPA4_c", "f(void (A::*)() const, char (*&) [4])"),
        ("_Z1fPKcS0_PVKS_", "f(char const*, char const*, char const volatile*)"),
        ("_ZN2n15outerI5Inner1AEC2ERKS2_", "n1::outer<Inner, A>::outer(A const&)"),
        (
            "_ZN7rocksdb5Batch7IterateEPKNS_5WriteEPNS1_7HandlerEm",
            "rocksdb::Batch::Iterate(rocksdb::Write const*, rocksdb::Write::Handler*, unsigned long)",
        ),
        ("_Z4overDnOM1Ai", "over(decltype(nullptr), int A::*&&)"),
        (
            "_Z4valsILin3ELc120ELb1EXadL_Z2glEELDnEEii",
            "int vals<-3, (char)120, true, &gl, decltype(nullptr)>(int)",
        ),
        ("_Z2enIL1E77EEiv", "int en<(E)77>()"),
        ("_Z2tfIXadL_ZN6Server6handleEiEEEvv", "void tf<&Server::handle>()"),
        ("_Z2tgIXadL_ZL2lfiEEEvv", "void tg<&(lf(int))>()"),
        (
            "_Z1gIiENSt9enable_ifIXsr11is_integralIT_EE5valueES1_E4typeES1_",
            "std::enable_if<is_integral<int>::value, int>::type g<int>(int)",
        ),
        ("_Z2trIiEDTplfp_Li1EET_", "decltype ({parm#1}+(1)) tr<int>(int)"),
        ("_Z1hIJilEEvDp3BoxIT_E", "void h<int, long>(Box<int>, Box<long>)"),
        ("_Z1sIJilEEiRAsZT__c", "int s<int, long>(char (&) [2])"),
        ("_ZZ4mainENKUliE_clEi", "main::{lambda(int)#1}::operator()(int) const"),
        ("_ZZ1fIiEvT_ENKUlS0_E_clEd", "f<int>(int)::{lambda(auto:1)#1}::operator()(double) const"),
        ("_ZZN1A1gEidEd0_NK1B1hEv", "A::g(int, double)::{default arg#2}::B::h() const"),
        ("_ZN12_GLOBAL__N_16hiddenEPNS_1AE", "(anonymous namespace)::hidden((anonymous namespace)::A*)"),
        ("_ZN1AB3tagC1Ev", "A[abi:tag]::A()"),
        ("_Z1fB5cxx11v", "f[abi:cxx11]()"),
        (
            "_ZNSsC1ERKSs",
            "std::basic_string<char, std::char_traits<char>, std::allocator<char> >::basic_string(std::string const&)",
        ),
        ("_ZNSolsEi", "std::ostream::operator<<(int)"),
        ("_ZlsIiEvRSoT_", "void operator<< <int>(std::ostream&, int)"),
        ("_ZN1AdlEPv", "A::operator delete(void*)"),
        ("_ZNKR1A1fEv", "A::f() const &"),
        ("_Z1fPDoFvvE", "f(void (*)() noexcept)"),
        ("_Z1fDv4_f", "f(float __vector(4))"),
        ("_Z1fDF16_Cd", "f(_Float16, double _Complex)"),
        ("_Z1fIXgtLi2ELi1EEEvv", "void f<((2)>(1))>()"),
        ("_Z1fIXqultLi1ELi2ELi3ELi4EEEvv", "void f<((1)<(2))?(3) : (4)>()"),
        ("_Z1fIXstiEXcvhLi1EEEvv", "void f<sizeof (int), (unsigned char)(1)>()"),
        ("_Zli3_kmy", "operator\"\" _km(unsigned long long)"),
        ("_ZN3litli2_rEe", "lit::operator\"\" _r(long double)"),
        ("_Z1fli2AA", "f(long, int, AA)"),
        ("_ZTch0_h16_N1C3dupEv", "covariant return thunk to C::dup()"),
        ("_ZTv0_n24_N1D1fEi", "virtual thunk to D::f(int)"),
        ("_ZTW3tls", "TLS wrapper function for tls"),
        ("_Z3foov.default", "foo() [clone .default]"),
    ] {
        assert_eq!(whole(symbol).as_deref(), Some(name), "{symbol}");
    }
}

#[test]
fn signature_limits_what_is_written() {
    for (symbol, plain, parameters) in [
        ("_Z4convIdEiT_", "conv<double>", "conv<double>(double)"),
        ("_Z8ret_fn_tIiEPFviET_", "ret_fn_t<int>", "ret_fn_t<int>(int)"),
        ("_ZNK3Foo3getEc", "Foo::get", "Foo::get(char) const"),
        (
            "_ZZN1A1fEiENKUliE_clEi",
            "A::f(int)::{lambda(int)#1}::operator()",
            "A::f(int)::{lambda(int)#1}::operator()(int) const",
        ),
        ("_ZThn16_N1C1gEi", "non-virtual thunk to C::g", "non-virtual thunk to C::g(int)"),
    ] {
        assert_eq!(demangle(symbol, Signature::Name).as_deref(), Some(plain), "{symbol}");
        assert_eq!(demangle(symbol, Signature::Parameters).as_deref(), Some(parameters), "{symbol}");
    }
}

#[test]
fn malformed_symbols_are_not_names() {
    for symbol in [
        "_Z",
        "_ZN",
        "_Z3fo",
        "_Z1fS_",
        "_Z1fT_",
        "_Z1fIT_EvT_",
        "_Z1fIKT_EvS_",
        "_ZNE",
        "_ZNC1Ev",
        "_Z1fIiEvT0_",
        "_Z1fSZZ_",
        "_Z1fDp",
        "_Z0v",
        "_Z1f99999999999999999999",
        "_ZN1AC1",
        "_Z1fLé",
        "_Z1fIXadEEvv",
        "_ZTh_1f",
        "_Zcv",
        "_Z1fiE",
        "_Z1f_",
    ] {
        assert_eq!(whole(symbol), None, "{symbol}");
    }
    // What is within a symbol is cut at any place without a panic.
    let symbol =
        "_ZNK4toku3omtIPNS_8locktreeES2_Lb0EE9find_zeroI2IDXadL_ZNS_7manager4findERKS2_RKS5_EEEEiRKT_PS2_Pj";
    for end in 0..symbol.len() {
        let _ = whole(&symbol[..end]);
    }
}

#[test]
fn deep_and_long_names_are_abandoned() {
    let pointers = |number: usize| format!("_Z1f{}i", "P".repeat(number));
    assert_eq!(whole(&pointers(100)), Some(format!("f(int{})", "*".repeat(100))));
    assert_eq!(whole(&pointers(4000)), None);
    // Each parameter points to the previous one.
    let mut chain = "_Z1fPi".to_owned();
    let digit = |n: u32| char::from_digit(n, 36).unwrap().to_ascii_uppercase();
    chain.push_str("PS_");
    for n in 0..900_u32 {
        let number =
            if n < 36 { digit(n).to_string() } else { format!("{}{}", digit(n / 36), digit(n % 36)) };
        chain.push_str(&format!("PS{number}_"));
    }
    assert_eq!(whole(&chain), None);
    // Each parameter contains the previous one twice, but nothing is written of them.
    let mut empty = "_Z1fIJEEvDp1AIT_E".to_owned();
    for n in 0..200_u32 {
        let number = format!(
            "S{}_",
            if n < 36 { digit(n).to_string() } else { format!("{}{}", digit(n / 36), digit(n % 36)) }
        );
        empty.push_str(&format!("1AIJ{number}{number}EE"));
    }
    assert!(whole(&empty).is_none_or(|name| name.len() <= MAX_DEMANGLED));
}
