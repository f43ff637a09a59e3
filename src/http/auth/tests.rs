use std::time::Duration;

use super::*;

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn header(user_and_password: &str) -> HeaderValue {
    format!("Basic {}", BASE64.encode(user_and_password)).parse().unwrap()
}

async fn accepts(credentials: &Credentials, user_and_password: &str) -> bool {
    credentials.accept(Some(&header(user_and_password)), PEER).await
}

fn one(user: &str, password: &str) -> Result<Credentials, HttpError> {
    Credentials::new([(user, password)], None)
}

#[tokio::test]
async fn accepts_only_the_exact_credentials() {
    let credentials = one("prom", "se:cret").unwrap();
    assert!(accepts(&credentials, "prom:se:cret").await);
    assert!(credentials.knows(Some(&header("prom:se:cret"))));
    for wrong in ["prom:se:cre", "prom:se:crett", "prom:", ":se:cret", "pro:se:cret", "se:cret:prom", "prom"]
    {
        assert!(!accepts(&credentials, wrong).await, "{wrong}");
        assert!(!credentials.knows(Some(&header(wrong))), "{wrong}");
    }
    assert!(!credentials.accept(None, PEER).await && !credentials.knows(None));
}

#[test]
fn rejects_malformed_headers() {
    let presented =
        |user: &str, password: &str| Some(Presented { user: user.into(), password: password.into() });
    assert_eq!(parse(&"basic  dTpw ".parse().unwrap()), presented("u", "p"));
    assert_eq!(parse(&"BASIC dTo=".parse().unwrap()), presented("u", ""));
    for bad in ["", "Basic", "Basic !!!", "Bearer dTpw", "dTpw", "Basic dQ=="] {
        assert_eq!(parse(&bad.parse().unwrap()), None, "{bad}");
    }
    let long = format!("u:{}", "p".repeat(MAX_HEADER));
    assert_eq!(parse(&header(&long)), None);
}

#[tokio::test]
async fn rejects_what_cannot_be_meant_as_a_password() {
    for (password, reason) in [
        ("$apr1$salt$hash", "another kind than bcrypt"),
        ("{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "another kind than bcrypt"),
        ("prom:$apr1$salt$hash", "htpasswd"),
        ("other:$2y$05$abc", "htpasswd"),
    ] {
        let error = one("prom", password).unwrap_err().to_string();
        assert!(error.contains(reason) && !error.contains("salt"), "{password}: {error}");
    }
    // The longest that a request can transmit.
    let longest = "p".repeat(1525);
    let credentials = one("prom", &longest).unwrap();
    assert!(accepts(&credentials, &format!("prom:{longest}")).await);
    let error = one("prom", &format!("{longest}p")).unwrap_err().to_string();
    assert!(error.contains("1530 bytes together; a request may have 1529"), "{error}");
    for good in ["$", "$2", "a:b", "a:$b", "{sha}", "pass $apr1$"] {
        assert!(one("prom", good).is_ok(), "{good}");
    }
}

#[tokio::test]
async fn bcrypt_results_are_cached() {
    let hash = bcrypt::hash("secret", 4).unwrap();
    for version in ["$2a$", "$2b$", "$2y$"] {
        let hash = format!("{version}{}", &hash[4..]);
        let credentials = one("prom", &hash).unwrap();
        assert!(!credentials.knows(Some(&header("prom:secret"))), "not before it was asked");
        for _ in 0..2 {
            assert!(accepts(&credentials, "prom:secret").await);
            assert!(!accepts(&credentials, "prom:wrong").await);
            assert!(!accepts(&credentials, "other:secret").await);
            assert!(!accepts(&credentials, &format!("prom:{hash}")).await, "the hash is no password");
        }
        assert!(credentials.knows(Some(&header("prom:secret"))));
        assert!(!credentials.knows(Some(&header("prom:wrong"))));
        let (right, wrong) = (lock(&credentials.0.users[0].right), lock(&credentials.0.wrong));
        assert_eq!((right.order.len(), wrong.order.len()), (1, 3));
    }
}

#[tokio::test]
async fn aborted_request_holds_its_turn_until_hashing_ends() {
    let credentials = one("prom", &bcrypt::hash("secret", 8).unwrap()).unwrap();
    let header = header("prom:secret");
    let mut asked = Box::pin(credentials.accept(Some(&header), PEER));
    let begun = tokio::time::timeout(Duration::ZERO, asked.as_mut()).await;
    assert!(begun.is_err(), "{begun:?}");
    drop(asked);
    let _next = credentials.0.turns.take(PEER).await.expect("a turn");
    assert!(credentials.knows(Some(&header)), "the next one has its turn while the hash is being evaluated");
}

#[tokio::test]
async fn each_user_has_a_separate_password() {
    let hash = |password| bcrypt::hash(password, 4).unwrap();
    let (alice, bob) = (hash("a"), hash("b"));
    let credentials = Credentials::new([("alice", alice.as_str()), ("bob", bob.as_str())], None).unwrap();
    for (pair, right) in [
        ("alice:a", true),
        ("bob:b", true),
        ("alice:b", false),
        ("bob:a", false),
        ("carol:a", false),
        ("carol:b", false),
    ] {
        assert_eq!(accepts(&credentials, pair).await, right, "{pair}");
        assert_eq!(accepts(&credentials, pair).await, right, "{pair}, remembered");
    }
}

#[tokio::test]
async fn unchanged_users_stay_cached_on_reload() {
    let hash = |password| bcrypt::hash(password, 4).unwrap();
    let (alice, bob, new) = (hash("a"), hash("b"), hash("new"));
    let before = Credentials::new([("alice", alice.as_str()), ("bob", bob.as_str())], None).unwrap();
    assert!(accepts(&before, "alice:a").await && accepts(&before, "bob:b").await);
    assert!(!accepts(&before, "bob:new").await);
    let after = Credentials::new([("bob", new.as_str()), ("alice", alice.as_str())], Some(&before)).unwrap();
    assert!(after.knows(Some(&header("alice:a"))));
    assert!(!after.knows(Some(&header("bob:b"))) && !accepts(&after, "bob:b").await);
    assert!(accepts(&after, "bob:new").await, "what was wrong before is right now");
    let without = Credentials::new([("bob", new.as_str())], Some(&after)).unwrap();
    assert!(!without.knows(Some(&header("alice:a"))) && !accepts(&without, "alice:a").await);
}

#[test]
fn memory_is_bounded() {
    let mut results = Recent::default();
    for guess in 0..10_000u32 {
        results.remember(&guess.to_be_bytes());
    }
    assert_eq!(results.known.len(), CACHE_SIZE);
    assert!(results.has(&9_999u32.to_be_bytes()) && !results.has(&0u32.to_be_bytes()));
}

#[test]
fn credential_errors_state_the_reason_without_the_secret() {
    for (user, password, reason) in [
        ("", "p", "empty"),
        ("u", "", "empty"),
        ("a:b", "hunter2", "colon"),
        ("u", "$2y$10$hunter2", "looks like a bcrypt hash"),
        ("u", "$2b$31$7EqJtq98hPqEX7fNZaFWoOhi5BWX4eEG1hZ3bU1bN9S1n9vAqGn1e", "cost 31"),
    ] {
        let text = one(user, password).unwrap_err().to_string();
        assert!(text.contains(reason), "{text}");
        assert!(!text.contains("hunter2") && !text.contains("7EqJ"), "{text}");
    }
    let shown = format!("{:?}", one("someuser", "hunter2").unwrap());
    assert!(!shown.contains("hunter2") && !shown.contains("someuser"));
}
