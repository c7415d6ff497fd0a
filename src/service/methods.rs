//! The methods of a service, by name.

use crate::error::Failure;
use crate::wire::{Reply, Request, check_method};

/// The methods of a service, by name: a handler that passes each request to the handler of its
/// method ([`Request::method`], the `type` of the AMQP message).
///
/// ```
/// use rabbitmq_rpc::{Failure, Methods, Request, Status};
///
/// fn set_price(request: &Request) -> Result<String, Failure> {
///     Ok(format!("set to {}", String::from_utf8_lossy(request.body())))
/// }
///
/// fn prices() -> Box<Methods> {
///     Methods::new()
///         .on("price.get", |_request| Ok("12"))
///         .on("price.set", set_price)
/// }
///
/// // It is a function of a request, so a test calls it without a broker.
/// let prices = prices();
/// let reply = prices(&Request::new("13").with_method("price.set")).unwrap();
/// assert_eq!(reply.body(), b"set to 13");
/// let failure = prices(&Request::new("13").with_method("price.raise")).unwrap_err();
/// assert_eq!(failure.status, Status::Unimplemented);
/// ```
///
/// [`RpcServer::serve`](crate::RpcServer::serve) takes it as it takes any handler:
///
/// ```no_run
/// # use rabbitmq_rpc::{Brokers, Methods, RpcServer, ServerOptions};
/// # let brokers = Brokers::parse("amqp://localhost")?;
/// # let methods = Methods::new();
/// let server = RpcServer::connect(brokers, "prices", ServerOptions::default())?;
/// server.serve(methods)?;
/// # Ok::<(), rabbitmq_rpc::Error>(())
/// ```
///
/// A request whose method has no handler gets
/// [`UNIMPLEMENTED`](crate::Status::Unimplemented), and its caller knows that nothing was executed.
/// `otherwise` replaces this answer; it and `on` stand at [`Handler`]. Names that begin with
/// `rpc.` are the server's own: their requests reach no handler.
// An alias, because only a type that implements `Fn` can be passed where closures are passed whose
// parameter needs no annotation. A struct cannot implement `Fn`; a trait object of a subtrait does.
pub type Methods = dyn Handler;

/// What executes requests: any function of a request. [`Methods`] is the kind that has a table.
pub trait Handler: Fn(&Request) -> Result<Reply, Failure> + Send + Sync {}

impl<H: Fn(&Request) -> Result<Reply, Failure> + Send + Sync> Handler for H {}

/// The table is a chain: each entry is a closure that owns the entries before it.
impl dyn Handler {
    /// A table without methods.
    pub fn new() -> Box<Methods> {
        Box::new(|request: &Request| {
            Err(Failure::unimplemented(match request.method() {
                Some(method) => format!("there is no method {method:?}"),
                None => "the request names no method".into(),
            }))
        })
    }

    /// Adds a method. If the table has a method of this name, it is replaced. A name that no
    /// request can reach, because it begins with `rpc.` or has more than 255 bytes, is logged as an
    /// error.
    pub fn on<H, R>(self: Box<Methods>, name: impl Into<String>, handler: H) -> Box<Methods>
    where
        H: Fn(&Request) -> Result<R, Failure> + Send + Sync + 'static,
        R: Into<Reply>,
    {
        let name = name.into();
        if let Err(mistake) = check_method(&name) {
            log::error!("{mistake}");
        }
        Box::new(move |request: &Request| match request.method() {
            Some(method) if method == name => {
                // Whatever other tables the handler calls, it has begun the request itself.
                let has_begun = |failure| Failure { not_executed: false, ..failure };
                handler(request).map(R::into).map_err(has_begun)
            }
            _ => self(request),
        })
    }

    /// Sets the handler of requests that name no method, or one that the table does not have.
    pub fn otherwise<H, R>(self: Box<Methods>, handler: H) -> Box<Methods>
    where
        H: Fn(&Request) -> Result<R, Failure> + Send + Sync + 'static,
        R: Into<Reply>,
    {
        Box::new(move |request: &Request| match self(request) {
            Err(Failure { not_executed: true, .. }) => handler(request).map(R::into),
            answer => answer,
        })
    }
}
