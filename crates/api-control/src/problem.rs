//! Errors in the shape of Azure Resource Manager. The only place that knows status codes.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use fabric::FabricError;
use serde_json::json;

#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Problem {
    pub fn no_token() -> Self {
        let message = "Authentication failed. The 'Authorization' header is missing or not a Bearer token.";
        Self::new(StatusCode::UNAUTHORIZED, "AuthenticationFailed", message.to_owned())
    }

    pub fn bad_token(error: &str) -> Self {
        let message = format!("The access token is invalid: {error}.");
        Self::new(StatusCode::UNAUTHORIZED, "InvalidAuthenticationToken", message)
    }

    pub fn no_such_route(path: &str) -> Self {
        let shown: String = path.chars().take(200).collect();
        Self::new(StatusCode::NOT_FOUND, "ResourceNotFound", format!("There is nothing at {shown:?}."))
    }

    pub fn not_found(code: &'static str, message: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message.to_owned())
    }

    pub fn no_role(id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "RoleDefinitionDoesNotExist", format!("There is no role {id:?}."))
    }

    pub fn method_not_allowed(method: &str) -> Self {
        let message = format!("The method {method} is not supported here.");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    pub fn invalid(message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub fn version(code: &'static str, message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// Says where, and repeats nothing.
    pub fn malformed(error: &serde_json::Error) -> Self {
        let message =
            format!("The request body is not JSON (line {}, column {}).", error.line(), error.column());
        Self::new(StatusCode::BAD_REQUEST, "InvalidRequestContent", message)
    }

    pub fn too_many_values() -> Self {
        let message = format!("The request body must have at most {} values.", crate::body::MAX_VALUES);
        Self::new(StatusCode::BAD_REQUEST, "InvalidRequestContent", message)
    }

    pub fn too_large() -> Self {
        let message = format!("The request body is larger than {} bytes.", crate::MAX_BODY_BYTES);
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestContentTooLarge", message)
    }

    pub fn internal() -> Self {
        let message = "The request failed; the server's log says why.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", message.to_owned())
    }

    fn new(status: StatusCode, code: &'static str, message: String) -> Self {
        Self { status, code, message }
    }

    pub fn response(self, authority: &str, tenant: &str) -> Response {
        let body = json!({"error": {"code": self.code, "message": self.message}});
        let mut response = (self.status, axum::Json(body)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            // Clients find their tenant by it.
            let challenge =
                format!("Bearer authorization_uri=\"{authority}/{tenant}\", error=\"invalid_token\"");
            if let Ok(challenge) = HeaderValue::from_str(&challenge) {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            }
        }
        response
    }
}

impl From<FabricError> for Problem {
    fn from(error: FabricError) -> Self {
        let message = error.to_string();
        match error {
            FabricError::Denied(denied) => {
                let message = format!("{}{}.", "T", &denied.to_string()[1..]);
                Self::new(StatusCode::FORBIDDEN, "AuthorizationFailed", message)
            }
            FabricError::NoPool(_) | FabricError::NoDeletedPool(_) => {
                Self::new(StatusCode::NOT_FOUND, "ResourceNotFound", message)
            }
            FabricError::NoAssignment(_) => {
                Self::new(StatusCode::NOT_FOUND, "RoleAssignmentNotFound", message)
            }
            FabricError::AssignmentExists(id) => {
                let message = format!(
                    "The role assignment already exists. The ID of the existing role assignment is {id}."
                );
                Self::new(StatusCode::CONFLICT, "RoleAssignmentExists", message)
            }
            FabricError::AssignmentFixed => {
                let message =
                    "Tenant ID, application ID, principal ID, and scope are not allowed to be updated.";
                Self::new(StatusCode::BAD_REQUEST, "RoleAssignmentUpdateNotPermitted", message.to_owned())
            }
            FabricError::NoEndpoint(_) | FabricError::NoConnection(_) => {
                Self::new(StatusCode::NOT_FOUND, "ResourceNotFound", message)
            }
            FabricError::Invalid(message) => Self::invalid(message),
            FabricError::Conflict(message) => Self::new(StatusCode::CONFLICT, "Conflict", message),
            FabricError::NotAllowed(message) => {
                Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
            }
            // Where things are kept is nobody's to know.
            FabricError::Provision(error) => {
                tracing::error!(%error, "a pool cannot be provisioned");
                Self::internal()
            }
            FabricError::Store(error) => {
                tracing::error!(%error, "the control plane's store failed");
                Self::internal()
            }
        }
    }
}
