"""The routes of webhooks: endpoints, their secrets, and deliveries."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from tweezer.api.access.dependencies import Caller, ReadBodies, Submitter
from tweezer.api.batches.bodies import choose_project
from tweezer.api.batches.filters import Text
from tweezer.api.http.openapi import describe_failures, describe_list, describe_route
from tweezer.api.http.responses import created, page, success
from tweezer.api.webhooks.schemas import (
    DeliveryPageQuery,
    DeliveryPageResponse,
    DeliveryResponse,
    DeliveryWithBodyResponse,
    MadeWebhookResponse,
    NewWebhook,
    ResendBody,
    ResentResponse,
    WebhookChange,
    WebhookPageQuery,
    WebhookResponse,
    WebhookSecretResponse,
)
from tweezer.api.webhooks.service import Hooks, WebhookService, reject_malformed, visible_projects
from tweezer.ledger.access.credentials import Principal
from tweezer.webhooks.delivery_log import find_delivery, list_deliveries, ping, resend, resend_since
from tweezer.webhooks.endpoints import (
    Endpoint,
    change_endpoint,
    count_endpoints,
    create_endpoint,
    delete_endpoint,
    disable_endpoint,
    enable_endpoint,
    find_endpoint,
    list_endpoints,
)
from tweezer.webhooks.secrets import OVERLAP_MAX_S, OVERLAP_S

router = APIRouter(tags=["webhooks"], responses=describe_failures(403, 422, 503))

_BY_HAND = "disabled by hand"


async def _endpoint(
    caller: Caller, webhooks: Hooks, webhook_id: Annotated[UUID, Path(description="Id of an endpoint.")]
) -> Endpoint:
    return await webhooks.read(find_endpoint, webhook_id, visible_projects(caller))


FoundEndpoint = Annotated[Endpoint, Depends(_endpoint)]


async def _endpoint_to_change(caller: Submitter, endpoint: FoundEndpoint) -> Endpoint:
    return endpoint


EndpointToChange = Annotated[Endpoint, Depends(_endpoint_to_change)]
WebhookPageParams = Annotated[WebhookPageQuery, Query()]
DeliveryPageParams = Annotated[DeliveryPageQuery, Query()]
DeliveryId = Annotated[UUID, Path(description="Id of a delivery.")]
ProjectId = Annotated[
    Text | None, Query(description="Id of the project; may be omitted if the key belongs to a single project.")
]
OverlapSeconds = Annotated[
    float,
    Query(
        ge=0,
        le=OVERLAP_MAX_S,
        allow_inf_nan=False,
        description="For how many seconds deliveries are also signed with the old secret.",
    ),
]
Ed25519 = Annotated[bool, Query(description="Whether to create or replace the ed25519 key instead of the HMAC secret.")]


# -- endpoints ----------------------------------------------------------------------------------------------


@router.get("/api/v2/webhooks", summary="List endpoints", **describe_list(WebhookResponse))
async def list_webhooks(query: WebhookPageParams, caller: Caller, webhooks: Hooks) -> Response:
    """Return a page of the endpoints of the caller's projects, without their secrets: first those that were
    registered, then those that batches were submitted with, both newest first."""
    projects = visible_projects(caller)
    if query.project_id:
        projects = {it for it in query.project_id if caller.sees(it)}
    found = await webhooks.read(list_endpoints, projects, kind=query.kind, limit=query.limit, offset=query.offset)
    total = await webhooks.read(count_endpoints, projects, kind=query.kind)
    return page([WebhookResponse.from_record(it) for it in found], offset=query.offset, total=total)


@router.post(
    "/api/v2/webhooks",
    summary="Register an endpoint",
    **describe_route(MadeWebhookResponse, 404, 409, body=NewWebhook, creates=True),
)
async def create_webhook(request: Request, caller: Submitter, bodies: ReadBodies, webhooks: Hooks) -> Response:
    """Create an endpoint that receives the events of its project from now on. The response includes the secret with
    which its receiver verifies them."""
    body = await bodies.read(request, NewWebhook, account=caller.account)
    project = choose_project(caller, body.project_id)
    with reject_malformed():
        made = await webhooks.change(
            create_endpoint,
            webhooks.policy,
            project_id=project,
            url=body.url,
            types=body.types,
            description=body.description,
        )
    secret = await webhooks.first_secret(made, ed25519=body.ed25519)
    return created(
        MadeWebhookResponse(webhook=WebhookResponse.from_record(made), secret=WebhookSecretResponse.from_record(secret))
    )


@router.get(
    "/api/v2/webhooks/secret",
    summary="Get the webhook secret of a project",
    **describe_route(WebhookSecretResponse, 400, 404),
)
async def get_project_secret(caller: Submitter, webhooks: Hooks, project_id: ProjectId = None) -> Response:
    """Return the secret that signs what is sent to the `webhook` of the project's batches."""
    owner = await webhooks.find_owner(choose_project(caller, project_id))
    return success(WebhookSecretResponse.from_record(await webhooks.show(owner)))


@router.post(
    "/api/v2/webhooks/rotate_secret",
    summary="Rotate the webhook secret of a project",
    **describe_route(WebhookSecretResponse, 400, 404),
)
async def rotate_project_secret(
    caller: Submitter,
    webhooks: Hooks,
    project_id: ProjectId = None,
    overlap_s: OverlapSeconds = OVERLAP_S,
    ed25519: Ed25519 = False,
) -> Response:
    """Replace the secret. Deliveries are signed with the old secret as well for `overlap_s` seconds. The response is
    sent after 1.5 s, when every courier signs with the new secret."""
    owner = await webhooks.find_owner(choose_project(caller, project_id))
    shown = await webhooks.rotate(owner, overlap_s=overlap_s, ed25519=ed25519)
    return success(WebhookSecretResponse.from_record(shown))


@router.get("/api/v2/webhooks/{webhook_id}", summary="Get an endpoint", **describe_route(WebhookResponse, 404))
async def get_webhook(endpoint: FoundEndpoint) -> Response:
    """Return the current state of the endpoint, without its secret."""
    return success(WebhookResponse.from_record(endpoint))


@router.patch(
    "/api/v2/webhooks/{webhook_id}",
    summary="Change an endpoint",
    **describe_route(WebhookResponse, 404, 409, body=WebhookChange),
)
async def change_webhook(
    request: Request, endpoint: EndpointToChange, caller: Submitter, bodies: ReadBodies, webhooks: Hooks
) -> Response:
    """Change the given fields of an endpoint. An endpoint for the `webhook` of batches cannot be changed."""
    body = await bodies.read(request, WebhookChange, account=caller.account)
    with reject_malformed():
        changed = await webhooks.change(
            change_endpoint, webhooks.policy, endpoint.id, url=body.url, types=body.types, description=body.description
        )
    return success(WebhookResponse.from_record(changed))


@router.delete("/api/v2/webhooks/{webhook_id}", summary="Delete an endpoint", **describe_route(None, 404))
async def delete_webhook(endpoint: EndpointToChange, webhooks: Hooks) -> Response:
    """Delete the endpoint permanently, with its secrets and the log of its deliveries. The endpoint of a batch's
    `webhook` is created again with the next event of such a batch: disable it instead."""
    await webhooks.change(delete_endpoint, endpoint.id)
    return success(None)


@router.post(
    "/api/v2/webhooks/{webhook_id}/enable", summary="Enable an endpoint", **describe_route(WebhookResponse, 404)
)
async def enable_webhook(endpoint: EndpointToChange, webhooks: Hooks) -> Response:
    """Enable the endpoint: it receives new events again. Deliveries that were held while it was disabled stay held
    until you resend them."""
    return success(WebhookResponse.from_record(await webhooks.change(enable_endpoint, endpoint.id)))


@router.post(
    "/api/v2/webhooks/{webhook_id}/disable", summary="Disable an endpoint", **describe_route(WebhookResponse, 404)
)
async def disable_webhook(endpoint: EndpointToChange, webhooks: Hooks) -> Response:
    """Stop sending to the endpoint. New deliveries are recorded and held."""
    await webhooks.change(disable_endpoint, endpoint.id, _BY_HAND)
    return success(WebhookResponse.from_record(await webhooks.read(find_endpoint, endpoint.id)))


@router.post("/api/v2/webhooks/{webhook_id}/ping", summary="Send a ping", **describe_route(DeliveryResponse, 404, 409))
async def ping_webhook(endpoint: EndpointToChange, webhooks: Hooks) -> Response:
    """Send a `ping` event to test the endpoint, which need not be registered for this type. To see the outcome, use
    `GET /api/v2/deliveries/{delivery_id}` with the `id` in the response."""
    identity = await webhooks.change(ping, endpoint)
    await webhooks.arm(endpoint.id)
    return success(DeliveryResponse.from_record(await webhooks.read(find_delivery, identity)))


@router.get(
    "/api/v2/webhooks/{webhook_id}/secret",
    summary="Get the secret of an endpoint",
    **describe_route(WebhookSecretResponse, 404),
)
async def get_secret(endpoint: EndpointToChange, webhooks: Hooks) -> Response:
    """Return the secret with which the receiver verifies deliveries. For the `webhook` of batches it is the secret of
    the project."""
    return success(WebhookSecretResponse.from_record(await webhooks.show(endpoint.secret_owner)))


@router.post(
    "/api/v2/webhooks/{webhook_id}/rotate_secret",
    summary="Rotate the secret of an endpoint",
    **describe_route(WebhookSecretResponse, 404),
)
async def rotate_secret(
    endpoint: EndpointToChange, webhooks: Hooks, overlap_s: OverlapSeconds = OVERLAP_S, ed25519: Ed25519 = False
) -> Response:
    """Replace the secret. Deliveries are signed with the old secret as well for `overlap_s` seconds. The response is
    sent after 1.5 s, when every courier signs with the new secret."""
    shown = await webhooks.rotate(endpoint.secret_owner, overlap_s=overlap_s, ed25519=ed25519)
    return success(WebhookSecretResponse.from_record(shown))


# -- deliveries ---------------------------------------------------------------------------------------------


@router.get(
    "/api/v2/webhooks/{webhook_id}/deliveries",
    summary="List the deliveries to an endpoint",
    **describe_route(DeliveryPageResponse, 404),
)
async def list_endpoint_deliveries(
    endpoint: FoundEndpoint, query: DeliveryPageParams, caller: Caller, webhooks: Hooks
) -> Response:
    """Return a page of the deliveries to the endpoint with all their attempts, newest first."""
    return success(await _deliveries(webhooks, caller, query, endpoint.id))


@router.post(
    "/api/v2/webhooks/{webhook_id}/resend",
    summary="Resend the deliveries to an endpoint",
    **describe_route(ResentResponse, 404, 409, body=ResendBody),
)
async def resend_all(
    request: Request, endpoint: EndpointToChange, caller: Submitter, bodies: ReadBodies, webhooks: Hooks
) -> Response:
    """Resend the deliveries that were created since a time and have not been delivered, or with `all` every delivery
    since then, except pings. They keep their ids and bodies, get new signatures, and start a new retry schedule."""
    body = await bodies.read(request, ResendBody, account=caller.account)
    count = await webhooks.change(resend_since, endpoint.id, body.since, all=body.all)
    if count:
        await webhooks.arm(endpoint.id)
    return success(ResentResponse(count=count))


@router.get("/api/v2/deliveries", summary="List deliveries", **describe_route(DeliveryPageResponse))
async def list_all_deliveries(query: DeliveryPageParams, caller: Caller, webhooks: Hooks) -> Response:
    """Return a page of the deliveries to all endpoints of the caller's projects with all their attempts, newest
    first."""
    return success(await _deliveries(webhooks, caller, query, None))


@router.get(
    "/api/v2/deliveries/{delivery_id}", summary="Get a delivery", **describe_route(DeliveryWithBodyResponse, 404)
)
async def get_delivery(delivery_id: DeliveryId, caller: Caller, webhooks: Hooks) -> Response:
    """Return the delivery with all its attempts and the body that is sent."""
    return success(
        DeliveryWithBodyResponse.from_record(await webhooks.read(find_delivery, delivery_id, visible_projects(caller)))
    )


@router.post(
    "/api/v2/deliveries/{delivery_id}/resend", summary="Resend a delivery", **describe_route(DeliveryResponse, 404, 409)
)
async def resend_delivery(delivery_id: DeliveryId, caller: Submitter, webhooks: Hooks) -> Response:
    """Resend a delivery in any status. It keeps its id and body, gets a new signature, and starts a new retry
    schedule."""
    await webhooks.read(find_delivery, delivery_id, visible_projects(caller))
    found = await webhooks.change(resend, delivery_id)
    await webhooks.arm(found.endpoint)
    return success(DeliveryResponse.from_record(found))


async def _deliveries(
    webhooks: WebhookService, caller: Principal, query: DeliveryPageQuery, endpoint: UUID | None
) -> DeliveryPageResponse:
    with reject_malformed("query"):
        found = await webhooks.read(
            list_deliveries,
            visible_projects(caller),
            query.filter(endpoint),
            limit=query.limit,
            after=query.after or None,
        )
    return DeliveryPageResponse(deliveries=[DeliveryResponse.from_record(it) for it in found.rows], after=found.after)
