//! Basic authentication (RFC 7617).
//!
//! Configured and presented values are compared in constant time as keyed digests of equal size, so the response time
//! reveals neither a prefix nor a length. User and password are always both compared. With bcrypt the response time
//! does not reveal whether a user exists either: a hash is evaluated even for an unknown user.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_PAD_INDIFFERENT as BASE64;
use hyper::header::HeaderValue;
use ring::hmac;
use ring::rand::SystemRandom;
use subtle::ConstantTimeEq;

use super::error::HttpError;
use super::turns::Turns;

/// Longer `Authorization` headers are rejected without parsing.
const MAX_HEADER: usize = 2048;
/// The highest accepted bcrypt cost: an evaluation takes about 20 seconds.
const MAX_COST: u32 = 18;
/// The beginnings of password hashes that are not evaluated here: those of htpasswd and crypt(5).
const OTHER_HASHES: [&str; 11] =
    ["$apr1$", "$1$", "$2x$", "$5$", "$6$", "$7$", "$y$", "$gy$", "$argon2", "{SHA}", "{SSHA}"];
/// Cached bcrypt results: correct passwords of each user, and wrong ones.
const CACHE_SIZE: usize = 64;

/// The users and passwords that grant access. Cheap to clone; holds no password in plain text, and `Debug` shows
/// neither passwords nor users.
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

struct Inner {
    /// Random at each start, so that the digests are useless elsewhere.
    key: hmac::Key,
    /// At least one.
    users: Vec<Arc<User>>,
    /// Pairs that bcrypt rejected.
    wrong: Mutex<Recent>,
    /// Allows one evaluation at a time: a flood of guesses costs one core at most.
    turns: Arc<Turns>,
}

/// One user. It survives changes to other users, together with its cached results.
struct User {
    name: hmac::Tag,
    password: Password,
    /// This user's pairs that bcrypt accepted.
    right: Mutex<Recent>,
}

enum Password {
    Plain(hmac::Tag),
    Bcrypt(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(<hidden>)")
    }
}

impl Credentials {
    /// Creates credentials from users and their passwords. A password that starts with `$2a$`, `$2b$` or `$2y$` is a
    /// bcrypt hash, as printed by `htpasswd -nB`; any other is plain text. Users that `previous` had with the same
    /// password keep their cached results, so that clients need not be verified again.
    ///
    /// # Errors
    /// [`HttpError::Credentials`] if there is no user, or for the reasons given at [`check_user`].
    pub fn new<'a>(
        users: impl IntoIterator<Item = (&'a str, &'a str)>,
        previous: Option<&Credentials>,
    ) -> Result<Self, HttpError> {
        let key = match previous {
            Some(previous) => previous.0.key.clone(),
            None => hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
                .map_err(|_| refused("the system's random number generator failed"))?,
        };
        let mut all = Vec::new();
        for (name, password) in users {
            check_user(name, password)?;
            let password = if is_hash(password) {
                Password::Bcrypt(password.to_string())
            } else {
                Password::Plain(hmac::sign(&key, password.as_bytes()))
            };
            let name = hmac::sign(&key, name.as_bytes());
            let known = previous.and_then(|previous| {
                let same =
                    |user: &&Arc<User>| bool::from(equal(&user.name, &name)) && user.password.is(&password);
                previous.0.users.iter().find(same).cloned()
            });
            all.push(known.unwrap_or_else(|| Arc::new(User { name, password, right: Mutex::default() })));
        }
        if all.is_empty() {
            return Err(refused("there is no user"));
        }
        let turns = previous.map(|previous| previous.0.turns.clone()).unwrap_or_default();
        Ok(Self(Arc::new(Inner { key, users: all, wrong: Mutex::default(), turns })))
    }

    /// Whether a header grants access according to cached results, without evaluating a hash.
    pub(super) fn knows(&self, header: Option<&HeaderValue>) -> bool {
        header.and_then(parse).is_some_and(|presented| self.lookup(&presented).1 == Some(true))
    }

    /// Whether an `Authorization` header from `peer` grants access. If the user has a bcrypt hash and the pair is not
    /// cached, waits for the evaluation, which runs on a blocking thread.
    pub(super) async fn accept(&self, header: Option<&HeaderValue>, peer: IpAddr) -> bool {
        let Some(presented) = header.and_then(parse) else { return false };
        let inner = &self.0;
        let (found, known) = self.lookup(&presented);
        if let Some(result) = known {
            return result;
        }
        let Some(turn) = inner.turns.take(peer).await else { return false };
        // Another request may have verified the same pair while this one waited.
        if let (_, Some(result)) = self.lookup(&presented) {
            return result;
        }
        // The turn moves into the evaluation, which runs to completion even if the request is dropped meanwhile.
        let credentials = self.clone();
        let evaluated = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            credentials.evaluate(&found, &presented)
        });
        evaluated.await.unwrap_or(false)
    }

    /// Evaluates bcrypt, which is slow, and caches the result.
    fn evaluate(&self, found: &UserMatch, presented: &Presented) -> bool {
        let inner = &self.0;
        let user = &inner.users[found.user];
        let Password::Bcrypt(hash) = &user.password else { return false };
        let verified = bcrypt::verify(&presented.password, hash);
        let result = matches!(verified, Ok(true)) & found.is_that;
        lock(if result { &user.right } else { &inner.wrong }).remember(inner.pair(presented).as_ref());
        result
    }

    /// Returns the matching user and the result, if it is already known.
    fn lookup(&self, presented: &Presented) -> (UserMatch, Option<bool>) {
        let inner = &self.0;
        let found = inner.find(&presented.user);
        let user = &inner.users[found.user];
        let known = match &user.password {
            Password::Plain(right) => {
                let password_right = equal(&hmac::sign(&inner.key, &presented.password), right);
                Some(bool::from(password_right) & found.is_that)
            }
            Password::Bcrypt(_) => {
                let pair = inner.pair(presented);
                let right = lock(&user.right).has(pair.as_ref());
                let wrong = lock(&inner.wrong).has(pair.as_ref());
                (right || wrong).then_some(right && found.is_that)
            }
        };
        (found, known)
    }
}

/// The user whose password is compared, and whether its name matches the presented one.
struct UserMatch {
    user: usize,
    is_that: bool,
}

impl Inner {
    /// Compares against all users. For an unknown name one of the users stands in, always the same one for the same
    /// name, so that it takes as long as for a user that exists.
    fn find(&self, name: &[u8]) -> UserMatch {
        let name = hmac::sign(&self.key, name);
        let stand_in =
            name.as_ref().iter().fold(0, |sum, byte| (sum * 256 + usize::from(*byte)) % self.users.len());
        let mut found = UserMatch { user: stand_in, is_that: false };
        for (at, user) in self.users.iter().enumerate() {
            if bool::from(equal(&name, &user.name)) {
                found = UserMatch { user: at, is_that: true };
            }
        }
        found
    }

    fn pair(&self, presented: &Presented) -> hmac::Tag {
        // A user name contains no colon, so the pair is unambiguous.
        hmac::sign(&self.key, &[&presented.user[..], b":", &presented.password[..]].concat())
    }
}

impl Password {
    fn is(&self, other: &Password) -> bool {
        match (self, other) {
            (Password::Plain(a), Password::Plain(b)) => equal(a, b).into(),
            (Password::Bcrypt(a), Password::Bcrypt(b)) => a == b,
            _ => false,
        }
    }
}

/// Whether a password has the form of a bcrypt hash, valid or not.
pub fn is_hash(password: &str) -> bool {
    ["$2a$", "$2b$", "$2y$"].iter().any(|prefix| password.starts_with(prefix))
}

fn refused(text: impl Into<String>) -> HttpError {
    HttpError::Credentials(text.into())
}

/// Checks that a user name and its password or bcrypt hash can be used.
///
/// # Errors
/// [`HttpError::Credentials`] if either is empty, if the user contains a colon (basic authentication cannot transmit
/// one), if a bcrypt hash is malformed or too expensive, or if the text is certainly not meant as a password.
pub fn check_user(user: &str, password: &str) -> Result<(), HttpError> {
    if user.is_empty() || password.is_empty() {
        return Err(refused("the metrics user and password must not be empty"));
    }
    if user.contains(':') {
        return Err(refused(
            "the metrics user name contains a colon, which basic authentication does not allow",
        ));
    }
    if !is_hash(password) {
        return check_text(user, password);
    }
    match password.parse::<bcrypt::HashParts>() {
        Ok(parts) if parts.get_cost() > MAX_COST => Err(refused(format!(
            "the metrics password is a bcrypt hash of cost {}, which takes too long to check; the maximum cost \
             is {MAX_COST}",
            parts.get_cost()
        ))),
        Ok(_) => Ok(()),
        Err(_) => Err(refused(
            "the metrics password looks like a bcrypt hash but is not a valid one; `exporter hash-password` \
             prints one (keep all 60 characters, quoted)",
        )),
    }
}

/// Checks a password in plain text.
fn check_text(user: &str, password: &str) -> Result<(), HttpError> {
    let is_other_hash = |text: &str| OTHER_HASHES.iter().any(|prefix| text.starts_with(prefix));
    if is_other_hash(password) {
        return Err(refused(
            "the metrics password is a hash of another kind than bcrypt; `exporter hash-password` prints one that can be used, \
             and so does `htpasswd -nB USER`",
        ));
    }
    if password.split_once(':').is_some_and(|(_, hash)| is_other_hash(hash) || is_hash(hash)) {
        return Err(refused(
            "the metrics password is a line of an htpasswd file; only what follows the colon belongs here, if it is a bcrypt hash",
        ));
    }
    let header = "Basic ".len() + (user.len() + 1 + password.len()).div_ceil(3) * 4;
    if header > MAX_HEADER {
        return Err(refused(format!(
            "the metrics user and password have {} bytes together; a request may have {}",
            user.len() + password.len(),
            (MAX_HEADER - "Basic ".len()) / 4 * 3 - 1
        )));
    }
    Ok(())
}

fn equal(a: &hmac::Tag, b: &hmac::Tag) -> subtle::Choice {
    a.as_ref().ct_eq(b.as_ref())
}

fn lock(results: &Mutex<Recent>) -> std::sync::MutexGuard<'_, Recent> {
    results.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The latest pairs with one result, as digests. Correct and wrong pairs are cached separately, so that wrong guesses
/// can never evict a correct pair.
#[derive(Default)]
struct Recent {
    known: HashSet<Vec<u8>>,
    order: VecDeque<Vec<u8>>,
}

impl Recent {
    fn has(&self, pair: &[u8]) -> bool {
        self.known.contains(pair)
    }

    fn remember(&mut self, pair: &[u8]) {
        if !self.known.insert(pair.to_vec()) {
            return;
        }
        self.order.push_back(pair.to_vec());
        if self.order.len() > CACHE_SIZE
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

/// The user name in a header, whether or not the password is correct.
pub(super) fn user_of(header: &HeaderValue) -> Option<String> {
    parse(header).map(|presented| String::from_utf8_lossy(&presented.user).into_owned())
}

/// The credentials that a client presents.
#[derive(Debug, PartialEq, Eq)]
struct Presented {
    user: Vec<u8>,
    password: Vec<u8>,
}

/// Parses user and password from `Basic BASE64(user:password)`; returns `None` for anything else.
fn parse(header: &HeaderValue) -> Option<Presented> {
    let header = header.as_bytes();
    if header.len() > MAX_HEADER {
        return None;
    }
    let blank = header.iter().position(|&byte| byte == b' ')?;
    let (scheme, rest) = header.split_at(blank);
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let mut user = BASE64.decode(rest.trim_ascii()).ok()?;
    let colon = user.iter().position(|&byte| byte == b':')?;
    let password = user.split_off(colon + 1);
    user.pop();
    Some(Presented { user, password })
}

#[cfg(test)]
mod tests;
