//! The table of routes, and which of them a request is for.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::net::IpAddr;
use std::sync::Arc;

use hyper::body::Bytes;
use hyper::{Method, StatusCode};

use super::PLAIN_TEXT;
use super::stream::Broadcast;
use super::visitors::Visitors;

/// Produces a route's answer. It runs on a thread that may block, several at once; a panic in it gives the
/// client a 500 and nobody else anything.
pub type Handler = Arc<dyn Fn(&RequestInfo) -> Reply + Send + Sync>;

/// Who may ask for a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone who can connect.
    Open,
    /// Who presents the credentials, where any are configured.
    Credentials,
    /// Who presents the credentials. Where none are configured, there is no such route.
    Known,
    /// Who presents the credentials; where none are configured, who asks from this machine. No page of a browser.
    Operator,
    /// Who presents the credentials of a user who may write, or asks on the control socket; no page of a browser. Where no
    /// credentials are configured, there is no such route.
    Writer,
}

/// One row of the table: all there is to say about a path.
pub struct Route {
    /// The whole path, beginning with a slash; with `/*` at its end, every path that goes on from there.
    pub path: &'static str,
    /// A few words for where routes are listed; parts of a page, which have none, are left out there.
    pub about: &'static str,
    pub access: Access,
    /// The method that is served; with GET goes HEAD.
    pub method: Method,
    /// Content type of the handler's answers.
    pub content_type: &'static str,
    /// Where it is noted who asks.
    pub visitors: Option<Arc<Visitors>>,
    pub handler: Handler,
}

/// What a handler may know of a request.
#[derive(Debug, Clone)]
pub struct RequestInfo {
    /// What follows the question mark, undecoded.
    pub query: Option<String>,
    /// What it would like to get (the headers `Accept`).
    pub accept: Option<String>,
    /// What stands in the place of the path's `*`, undecoded.
    pub below: String,
    pub caller: Caller,
    /// Of a route with [`Access::Writer`]; that of others is not read.
    pub body: Bytes,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Over the network: the name, where credentials were asked for, and the address.
    Remote(Option<String>, IpAddr),
    /// On the control socket.
    Local(LocalPeer),
}

/// The process at the other end of a Unix socket, as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalPeer {
    pub uid: u32,
    pub pid: Option<i32>,
}

/// For the log: names are quoted, so that none can look like something else.
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

/// A handler's answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: StatusCode,
    pub body: Bytes,
    /// Instead of the route's.
    pub content_type: Option<Cow<'static, str>>,
    /// What goes on instead of the body.
    pub stream: Option<Arc<Broadcast>>,
}

impl Reply {
    /// 200 with a body.
    pub fn ok(body: impl Into<Bytes>) -> Self {
        Self::new(StatusCode::OK, body)
    }

    pub fn new(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self { status, body: body.into(), content_type: None, stream: None }
    }

    /// 200 with events, as long as the client listens.
    pub fn events(stream: Arc<Broadcast>) -> Self {
        Self { stream: Some(stream), ..Self::ok("") }
    }

    /// The same with a content type of its own.
    pub fn typed(self, content_type: Cow<'static, str>) -> Self {
        Self { content_type: Some(content_type), ..self }
    }
}

/// The routes of one listener. `/` is served too, as a page that lists them, unless the table has it.
pub struct Router {
    routes: Vec<Route>,
    index: String,
}

/// What the table says about a request.
pub(super) enum RouteMatch<'a> {
    Route(&'a Route),
    /// The list of routes.
    Index(&'a str),
    /// The path is known, the method is not served; the route's path is given, and what is served.
    WrongMethod(&'static str, String),
    Nothing,
}

impl Router {
    /// Makes a table; `title` heads the page that lists its routes.
    pub fn new(title: &str, routes: Vec<Route>) -> Self {
        let mut index = format!("{title}\n\n");
        for route in routes.iter().filter(|route| route.is_listed()) {
            let _ = writeln!(index, "{}  {}", route.path, route.about);
        }
        Self { routes, index }
    }

    /// `has_writers`: whether there can be somebody who may use routes with [`Access::Writer`] and [`Access::Known`].
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

    /// The body of a 404: what could have been asked for. The path that was asked for is not repeated.
    pub(super) fn not_found(&self) -> String {
        let told = self.routes.iter().filter(|route| route.is_listed());
        let paths: Vec<&str> = told.map(|route| route.path).collect();
        format!("not found; available: {}\n", paths.join(" "))
    }
}

impl Route {
    /// A path that is asked for with GET, by who presents the credentials.
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

    /// The same for others.
    #[must_use]
    pub fn open_to(self, access: Access) -> Self {
        Self { access, ..self }
    }

    /// The same with another method.
    #[must_use]
    pub fn with_method(self, method: Method) -> Self {
        Self { method, ..self }
    }

    /// Whether it is told of where routes are listed. Those of writers are not there for everybody.
    fn is_listed(&self) -> bool {
        !self.about.is_empty() && self.access != Access::Writer
    }

    /// What a path has in the place of the `*`; empty where there is none. `None` if it is another path.
    pub(super) fn below<'p>(&self, path: &'p str) -> Option<&'p str> {
        match self.path.strip_suffix('*') {
            Some(base) => path.strip_prefix(base).filter(|below| !below.is_empty()),
            None => (self.path == path).then_some(""),
        }
    }

    /// The content type of an answer: its own or the route's, or plain text for an error it reports.
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
    fn every_row_is_found_by_its_exact_path() {
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
    fn the_index_lists_the_table_unless_the_table_has_it() {
        let table = router(&["/health"]);
        let RouteMatch::Index(text) = table.find(&Method::GET, "/", false) else { panic!("no index") };
        assert_eq!(text, "title\n\n/health  about it\n");
        assert!(matches!(table.find(&Method::PUT, "/", false), RouteMatch::WrongMethod("/", _)));
        assert!(matches!(router(&["/"]).find(&Method::GET, "/", false), RouteMatch::Route(_)));
    }

    #[test]
    fn parts_of_a_page_are_not_listed() {
        let mut routes = router(&["/metrics", "/page.css"]).routes;
        routes[1].about = "";
        let table = Router::new("title", routes);
        assert_eq!(table.not_found(), "not found; available: /metrics\n");
        assert_eq!(table.index, "title\n\n/metrics  about it\n");
        assert!(matches!(table.find(&Method::GET, "/page.css", false), RouteMatch::Route(_)));
    }

    #[test]
    fn a_route_that_changes_something_takes_post_only() {
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
    fn an_error_is_plain_text_whatever_the_route_serves() {
        let table = router(&["/a"]);
        let route = &table.routes[0];
        assert_eq!(route.content_type_of(&Reply::ok("{}")), "application/json");
        let error = Reply::new(StatusCode::SERVICE_UNAVAILABLE, "not ready\n");
        assert_eq!(route.content_type_of(&error), PLAIN_TEXT);
    }

    #[test]
    fn a_path_can_go_on_and_have_several_methods() {
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
    fn callers_cannot_forge_lines_of_the_log() {
        let caller =
            |name: &str| Caller::Remote(Some(name.into()), "::ffff:192.0.2.1".parse().unwrap()).to_string();
        assert_eq!(caller("alice"), "user \"alice\" from 192.0.2.1");
        assert_eq!(caller("a\nb"), "user \"a\\nb\" from 192.0.2.1");
    }
}
