"""The events that ZenML sends, and where a call came from."""

from __future__ import annotations

from contextvars import ContextVar
from enum import Enum


class AnalyticsEvent(str, Enum):
    """Names of events, as ``zenml.analytics`` 0.66 to 0.98 has them. Every ``event`` argument also takes any string."""

    DEVICE_VERIFIED = "Device verified"
    USER_ENRICHED = "User Enriched"

    RUN_PIPELINE = "Pipeline run"
    RUN_PIPELINE_ENDED = "Pipeline run ended"
    CREATE_PIPELINE = "Pipeline created"
    BUILD_PIPELINE = "Pipeline built"
    DEPLOY_PIPELINE = "Pipeline deployed"

    GENERATE_TEMPLATE = "Template generated"
    CREATED_RUN_TEMPLATE = "Run template created"
    EXECUTED_RUN_TEMPLATE = "Run templated executed"
    EXECUTED_SNAPSHOT = "Snapshot executed"

    REGISTERED_STACK_COMPONENT = "Stack component registered"
    DEPLOY_STACK_COMPONENT = "Stack component deployed"
    DESTROY_STACK_COMPONENT = "Stack component destroyed"
    REGISTERED_CODE_REPOSITORY = "Code repository registered"
    REGISTERED_STACK = "Stack registered"
    UPDATED_STACK = "Stack updated"
    DEPLOY_STACK = "Stack deployed"
    DESTROY_STACK = "Stack destroyed"
    DEPLOY_FULL_STACK = "Full stack deployed"
    RUN_STACK_RECIPE = "Stack recipe ran"

    MODEL_DEPLOYED = "Model deployed"
    CREATED_MODEL = "Model created"
    CREATED_MODEL_VERSION = "Model Version created"

    CREATE_DEPLOYMENT = "Deployment created"
    STOP_DEPLOYMENT = "Deployment stopped"
    DELETE_DEPLOYMENT = "Deployment deleted"

    OPT_IN_ANALYTICS = "Analytics opt-in"
    OPT_OUT_ANALYTICS = "Analytics opt-out"
    OPT_IN_OUT_EMAIL = "Response for Email prompt"

    RUN_ZENML_GO = "ZenML go"

    CREATED_WORKSPACE = "Workspace created"
    CREATED_PROJECT = "Project created"
    CREATED_FLAVOR = "Flavor created"
    CREATED_SECRET = "Secret created"
    CREATED_SERVICE_CONNECTOR = "Service connector created"
    CREATED_SERVICE_ACCOUNT = "Service account created"
    CREATED_TAG = "Tag created"

    CREATED_TRIGGER = "Trigger created"
    UPDATED_TRIGGER = "Trigger updated"
    DELETED_TRIGGER = "Trigger deleted"

    SERVER_SETTINGS_UPDATED = "Server Settings Updated"
    ZENML_SERVER_DEPLOYED = "ZenML server deployed"
    ZENML_SERVER_DESTROYED = "ZenML server destroyed"


class SourceContext(str, Enum):
    """Where a call came from; the value is what the ``Source-Context`` header says."""

    CLI = "cli"
    PYTHON = "python"
    DASHBOARD = "dashboard"
    DASHBOARD_V2 = "dashboard-v2"
    API = "api"
    UNKNOWN = "unknown"


source_context: ContextVar[SourceContext] = ContextVar("Source-Context", default=SourceContext.PYTHON)
