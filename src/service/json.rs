//! Handlers and remote functions whose requests and replies are JSON.
//!
//! The bodies are bare JSON, so that a program in any language can be the other side.

use std::fmt;
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::{CallBuilder, PendingReply, RpcClient};
use crate::error::{Error, Failure, Result, Status};
use crate::wire::{Reply, Request};

const JSON: &str = "application/json";

/// Makes a handler of a function that takes and returns values as JSON.
///
/// A body that does not fit is `INVALID_ARGUMENT`, and its caller gets serde's sentence, with the
/// field and the position. The request's content type may be any.
///
/// ```
/// use rabbitmq_rpc::{Failure, Request, json};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Deserialize)]
/// struct Order {
///     item: String,
///     count: u64,
/// }
/// #[derive(Serialize)]
/// struct Receipt {
///     total: u64,
/// }
///
/// fn buy(order: Order, _request: &Request) -> Result<Receipt, Failure> {
///     Ok(Receipt { total: 12 * order.count })
/// }
///
/// let handler = json(buy);
/// let reply = handler(&Request::new(r#"{"item": "bolts", "count": 3}"#)).unwrap();
/// assert_eq!(reply.body(), br#"{"total":36}"#);
/// let failure = handler(&Request::new(r#"{"item": "bolts", "count": "a few"}"#)).unwrap_err();
/// // INVALID_ARGUMENT: the request does not fit: count: invalid type: string "a few", expected u64
/// // at line 1 column 34
/// assert!(failure.message.contains("count: invalid type"));
/// ```
pub fn json<I, O>(
    function: impl Fn(I, &Request) -> Result<O, Failure> + Send + Sync + 'static,
) -> impl Fn(&Request) -> Result<Reply, Failure> + Send + Sync + 'static
where
    I: DeserializeOwned,
    O: Serialize,
{
    move |request: &Request| {
        let argument = decode(request.body()).map_err(|error| {
            Failure::new(Status::InvalidArgument, format!("the request does not fit: {error}"))
        })?;
        let reply = serde_json::to_vec(&function(argument, request)?).map_err(|error| {
            Failure::new(Status::Internal, format!("the reply cannot be written as JSON: {error}"))
        })?;
        Ok(Reply::from(reply).with_content_type(JSON))
    }
}

/// A method of a service that takes an `I` and returns an `O`, both as JSON.
/// [`RpcClient::function`] returns it.
///
/// ```no_run
/// # use std::time::Duration;
/// # use rabbitmq_rpc::{Brokers, ClientOptions, RpcClient};
/// # #[derive(serde::Serialize)] struct Order { item: String, count: u64 }
/// # #[derive(serde::Deserialize)] struct Receipt { total: u64 }
/// # let brokers = Brokers::parse("amqp://localhost")?;
/// # let client = RpcClient::connect(brokers, "shop", ClientOptions::default())?;
/// let buy = client.function::<Order, Receipt>("buy");
/// let order = Order { item: "bolts".into(), count: 3 };
/// println!("{}", buy.call(&order)?.total);
///
/// let receipt = buy.request(&order).header("tenant", "7").timeout(Duration::from_secs(5)).call()?;
/// let pending = [buy.send(&order)?, buy.send(&order)?]; // Both in flight at once.
/// # Ok::<(), rabbitmq_rpc::Error>(())
/// ```
pub struct RemoteFunction<I: ?Sized, O> {
    client: RpcClient,
    method: String,
    types: PhantomData<fn(&I) -> O>,
}

impl RpcClient {
    /// The method of this name as a function from `I` to `O`, both as JSON. It shares the
    /// connection, and keeps it open.
    pub fn function<I: Serialize + ?Sized, O: DeserializeOwned>(
        &self,
        method: impl Into<String>,
    ) -> RemoteFunction<I, O> {
        RemoteFunction { client: self.share(), method: method.into(), types: PhantomData }
    }
}

impl<I: Serialize + ?Sized, O: DeserializeOwned> RemoteFunction<I, O> {
    /// Calls the function, and waits for its result for at most
    /// [`ClientOptions::timeout`](crate::ClientOptions::timeout).
    ///
    /// # Errors
    /// As [`RpcClient::call`]; [`Error::BadReply`] if the reply does not fit, and [`Error::Config`]
    /// if the argument cannot be written as JSON.
    pub fn call(&self, argument: &I) -> Result<O> {
        self.request(argument).call()
    }

    /// Sends the request and returns without waiting for its reply, as [`RpcClient::send`] does.
    ///
    /// # Errors
    /// As [`RemoteFunction::call`].
    pub fn send(&self, argument: &I) -> Result<PendingReply<O>> {
        self.request(argument).send()
    }

    /// Starts a call with options of its own.
    pub fn request(&self, argument: &I) -> CallBuilder<'_, O> {
        let body = serde_json::to_vec(argument).map_err(|error| {
            Error::Config(format!("the argument cannot be written as JSON: {error}"))
        });
        let call = self.client.try_request(body).method(&*self.method).content_type(JSON);
        call.decoded_by(|reply| {
            let value = decode(reply.body());
            value.map_err(|error| Error::BadReply(format!("the reply does not fit: {error}")))
        })
    }
}

/// The error names the field, if there is one, and the position.
fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| error.to_string())?;
    json.end().map_err(|error| error.to_string())?;
    Ok(value)
}

impl<I: ?Sized, O> fmt::Debug for RemoteFunction<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteFunction").field("method", &self.method).finish_non_exhaustive()
    }
}
