//! The route table and request matching.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::net::IpAddr;
use std::sync::Arc;

use hyper::body::Bytes;
use hyper::{Method, StatusCode};

use super::PLAIN_TEXT;
use super::stream::Broadcast;
use super::visitors::Visitors;

/// Produces a route's response. Runs on threads that may block, possibly several at once; after a panic the client gets
/// a 500 and other clients are not affected.
pub type Handler = Arc<dyn Fn(&RequestInfo) -> Reply + Send + Sync>;

/// The access control of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone who can connect.
    Open,
    /// Requires the credentials, if any are configured.
    Credentials,
    /// Requires the credentials. If none are configured, the route does not exist.
    Known,
    /// Requires the credentials, or a client on this machine if none are configured. Rejects requests from browser
    /// pages.
    Operator,
    /// Requires the credentials of a user with write access, or the control socket; rejects requests from browser
    /// pages. If no credentials are configured, the route does not exist.
    Writer,
}

/// A row of the table.
pub struct Route {
    /// The full path, with a leading slash; a trailing `/*` matches all paths below it.
    pub path: &'static str,
    /// A short description for the list of routes; empty for parts of a page, which are not listed.
    pub about: &'static str,
    pub access: Access,
    /// The allowed method; GET implies HEAD.
    pub method: Method,
    /// The content type of the handler's responses.
    pub content_type: &'static str,
    /// Records the clients of the route.
    pub visitors: Option<Arc<Visitors>>,
    pub handler: Handler,
}

/// The parts of a request that a handler sees.
#[derive(Debug, Clone)]
pub struct RequestInfo {
    /// The part after the question mark, not decoded.
    pub query: Option<String>,
    /// The `Accept` headers.
    pub accept: Option<String>,
    /// The part matched by the path's `*`, not decoded.
    pub below: String,
    pub caller: Caller,
    /// The body, which is read only for routes with [`Access::Writer`].
    pub body: Bytes,
}

/// The origin of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A client on the network: the user name, if credentials were required, and the address.
    Remote(Option<String>, IpAddr),
    /// A client of the control socket.
    Local(LocalPeer),
}

/// The process at the other end of a Unix socket, as reported by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalPeer {
    pub uid: u32,
    pub pid: Option<i32>,
}

/// For the log: names are quoted, so that none can be mistaken for something else.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remote(Some(name), peer) => write!(f, "user {name:?} from {}", peer.to_canonical()),
            Self::Remote(None, peer) => write!(f, "{}", peer.to_canonical()),
            Self::Local(LocalPeer { uid, pid: Some(pid) }) => write!(f, "uid {uid} (process {pid})"),
            Self::Local(LocalPeer { uid, pid: None }) => write!(f, "uid {uid}"),
        }
    }
}

/// A handler's response.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: StatusCode,
    pub body: Bytes,
    /// Overrides the route's content type.
    pub content_type: Option<Cow<'static, str>>,
    /// Sent instead of the body.
    pub stream: Option<Arc<Broadcast>>,
}

impl Reply {
    /// Creates a 200 response with a body.
    pub fn ok(body: impl Into<Bytes>) -> Self {
        Self::new(StatusCode::OK, body)
    }

    pub fn new(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self { status, body: body.into(), content_type: None, stream: None }
    }

    /// Creates a 200 response that streams events for as long as the client listens.
    pub fn events(stream: Arc<Broadcast>) -> Self {
        Self { stream: Some(stream), ..Self::ok("") }
    }

    /// Overrides the content type.
    pub fn typed(self, content_type: Cow<'static, str>) -> Self {
        Self { content_type: Some(content_type), ..self }
    }
}

/// The routes of one listener. Unless the table has it, `/` is served as a page that lists the routes.
pub struct Router {
    routes: Vec<Route>,
    index: String,
}

/// The result of matching a request against the table.
pub(super) enum RouteMatch<'a> {
    Route(&'a Route),
    /// The list of routes.
    Index(&'a str),
    /// The path exists, but not with this method: the route's path and the allowed methods.
    WrongMethod(&'static str, String),
    Nothing,
}

impl Router {
    /// Creates a table; `title` is the heading of the page that lists the routes.
    pub fn new(title: &str, routes: Vec<Route>) -> Self {
        let mut index = format!("{title}\n\n");
        for route in routes.iter().filter(|route| route.is_listed()) {
            let _ = writeln!(index, "{}  {}", route.path, route.about);
        }
        Self { routes, index }
    }

    /// Finds the route of a request. `has_writers`: whether anyone can be authorized for routes with [`Access::Writer`]
    /// and [`Access::Known`].
    pub(super) fn find(&self, method: &Method, path: &str, has_writers: bool) -> RouteMatch<'_> {
        let is_served =
            |served: &Method| method == served || (served == Method::GET && method == Method::HEAD);
        let needs_users = |route: &Route| matches!(route.access, Access::Writer | Access::Known);
        let routes = self.routes.iter().filter(|route| has_writers || !needs_users(route));
        let known: Vec<&Route> = routes.filter(|route| route.below(path).is_some()).collect();
        match (known.iter().find(|route| is_served(&route.method)), known.first()) {
            (Some(route), _) => RouteMatch::Route(route),
            (None, Some(first)) => {
                let methods = known.iter().map(|route| match route.method {
                    Method::GET => "GET, HEAD",
                    ref other => other.as_str(),
                });
                RouteMatch::WrongMethod(first.path, methods.collect::<Vec<_>>().join(", "))
            }
            (None, None) if path != "/" => RouteMatch::Nothing,
            (None, None) if is_served(&Method::GET) => RouteMatch::Index(&self.index),
            (None, None) => RouteMatch::WrongMethod("/", "GET, HEAD".to_string()),
        }
    }

    /// The body of a 404: the available paths. The requested path is not repeated.
    pub(super) fn not_found(&self) -> String {
        let listed = self.routes.iter().filter(|route| route.is_listed());
        let paths: Vec<&str> = listed.map(|route| route.path).collect();
        format!("not found; available: {}\n", paths.join(" "))
    }
}

impl Route {
    /// Creates a GET route that requires the credentials.
    pub fn get(
        path: &'static str,
        about: &'static str,
        content_type: &'static str,
        handler: impl Fn(&RequestInfo) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self {
            path,
            about,
            access: Access::Credentials,
            method: Method::GET,
            content_type,
            visitors: None,
            handler: Arc::new(handler),
        }
    }

    /// Changes the access control.
    #[must_use]
    pub fn open_to(self, access: Access) -> Self {
        Self { access, ..self }
    }

    /// Changes the method.
    #[must_use]
    pub fn with_method(self, method: Method) -> Self {
        Self { method, ..self }
    }

    /// Whether the route is listed. Routes for writers are not available to everyone.
    fn is_listed(&self) -> bool {
        !self.about.is_empty() && self.access != Access::Writer
    }

    /// Returns the part of a path that the `*` matches, or "" if the route has none. `None` if the path does not match.
    pub(super) fn below<'p>(&self, path: &'p str) -> Option<&'p str> {
        match self.path.strip_suffix('*') {
            Some(base) => path.strip_prefix(base).filter(|below| !below.is_empty()),
            None => (self.path == path).then_some(""),
        }
    }

    /// Returns the content type of a response: its own or the route's, or plain text for an error.
    pub(super) fn content_type_of(&self, reply: &Reply) -> Cow<'static, str> {
        match &reply.content_type {
            _ if !reply.status.is_success() => PLAIN_TEXT.into(),
            Some(own) => own.clone(),
            None => self.content_type.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router(paths: &[&'static str]) -> Router {
        let route = |&path| {
            Route::get(path, "about it", "application/json", |_| Reply::ok("{}")).open_to(Access::Open)
        };
        Router::new("title", paths.iter().map(route).collect())
    }

    #[test]
    fn routes_match_their_exact_path() {
        let router = router(&["/metrics", "/api/v1/flows"]);
        for route in &router.routes {
            assert!(
                matches!(router.find(&Method::GET, route.path, false), RouteMatch::Route(found) if found.path == route.path)
            );
            assert!(matches!(router.find(&Method::HEAD, route.path, false), RouteMatch::Route(_)));
            assert!(
                matches!(router.find(&Method::POST, route.path, false), RouteMatch::WrongMethod(path, ref methods) if path == route.path && methods == "GET, HEAD")
            );
        }
        for path in ["", "*", "/metrics/", "/Metrics", "/metrics2", "/api", "//metrics"] {
            assert!(matches!(router.find(&Method::GET, path, false), RouteMatch::Nothing), "{path}");
            assert!(matches!(router.find(&Method::POST, path, false), RouteMatch::Nothing), "{path}");
        }
        assert_eq!(router.not_found(), "not found; available: /metrics /api/v1/flows\n");
    }

    #[test]
    fn default_index_lists_the_routes() {
        let table = router(&["/health"]);
        let RouteMatch::Index(text) = table.find(&Method::GET, "/", false) else { panic!("no index") };
        assert_eq!(text, "title\n\n/health  about it\n");
        assert!(matches!(table.find(&Method::PUT, "/", false), RouteMatch::WrongMethod("/", _)));
        assert!(matches!(router(&["/"]).find(&Method::GET, "/", false), RouteMatch::Route(_)));
    }

    #[test]
    fn page_assets_are_not_listed() {
        let mut routes = router(&["/metrics", "/page.css"]).routes;
        routes[1].about = "";
        let table = Router::new("title", routes);
        assert_eq!(table.not_found(), "not found; available: /metrics\n");
        assert_eq!(table.index, "title\n\n/metrics  about it\n");
        assert!(matches!(table.find(&Method::GET, "/page.css", false), RouteMatch::Route(_)));
    }

    #[test]
    fn mutating_route_requires_post() {
        let mut table = router(&["/-/reload"]);
        table.routes[0].method = Method::POST;
        assert!(matches!(table.find(&Method::POST, "/-/reload", false), RouteMatch::Route(_)));
        for method in [Method::GET, Method::HEAD, Method::PUT] {
            assert!(
                matches!(table.find(&method, "/-/reload", false), RouteMatch::WrongMethod("/-/reload", ref methods) if methods == "POST")
            );
        }
    }

    #[test]
    fn errors_are_plain_text_on_every_route() {
        let table = router(&["/a"]);
        let route = &table.routes[0];
        assert_eq!(route.content_type_of(&Reply::ok("{}")), "application/json");
        let error = Reply::new(StatusCode::SERVICE_UNAVAILABLE, "not ready\n");
        assert_eq!(route.content_type_of(&error), PLAIN_TEXT);
    }

    #[test]
    fn wildcard_paths_and_multiple_methods() {
        let mut table = router(&["/list", "/list", "/list/*", "/list/*"]);
        for number in [1, 3] {
            table.routes[number].method = Method::DELETE;
            table.routes[number].access = Access::Writer;
        }
        for (method, path, found) in [
            (Method::GET, "/list", 0),
            (Method::DELETE, "/list", 1),
            (Method::HEAD, "/list/192.0.2.0/24", 2),
            (Method::DELETE, "/list/a", 3),
        ] {
            let RouteMatch::Route(route) = table.find(&method, path, true) else { panic!("{method} {path}") };
            assert!(std::ptr::eq(route, &table.routes[found]), "{method} {path}");
        }
        assert_eq!(table.routes[2].below("/list/192.0.2.0/24"), Some("192.0.2.0/24"));
        let wrong = |has_writers| match table.find(&Method::PUT, "/list", has_writers) {
            RouteMatch::WrongMethod("/list", methods) => methods,
            _ => panic!("PUT is served"),
        };
        assert_eq!((wrong(true), wrong(false)), ("GET, HEAD, DELETE".into(), "GET, HEAD".into()));
        for path in ["/list/", "/lists", "/list2/a", "/"] {
            assert!(!matches!(table.find(&Method::GET, path, true), RouteMatch::Route(_)), "{path}");
        }
    }

    #[test]
    fn callers_cannot_forge_log_lines() {
        let caller =
            |name: &str| Caller::Remote(Some(name.into()), "::ffff:192.0.2.1".parse().unwrap()).to_string();
        assert_eq!(caller("alice"), "user \"alice\" from 192.0.2.1");
        assert_eq!(caller("a\nb"), "user \"a\\nb\" from 192.0.2.1");
    }
}
