"""The OpenAPI documents that the API executes: routes and validators by operationId."""
