"""Keeps the page of a run up to date: an artifact of the run, made once and changed as stages end."""

from types import TracebackType
from typing import Self
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import FlowRunContext

from flows.pipeline.page import Page
from flows.pipeline.work import Outcome
from fmcore.flow.errors import one_line

KEY = "pipeline"


class Shown:
    """The page of the run that this is; a server that does not take it stops nothing."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._client: SyncPrefectClient = get_client(sync_client=True)
        self._artifact: UUID | None = None

    def begin(self, stage: str) -> None:
        """A stage starts; nothing is said of one that has nothing to do."""
        if stage:
            self.page.working = stage
            self.update()

    def end(self, outcome: Outcome, link: str) -> None:
        """A stage has ended."""
        self.page.working = ""
        self.page.outcomes[outcome.stage] = outcome
        self.page.links[outcome.stage] = link
        if outcome.seconds:
            self.update()

    def update(self) -> None:
        """Sends the page as it is now."""
        context = FlowRunContext.get()
        if context is None or context.flow_run is None:
            return
        text = self.page.text()
        try:
            if self._artifact is None:
                made = ArtifactCreate(
                    key=KEY,
                    type="markdown",
                    data=text,
                    description="what came of it",
                    flow_run_id=context.flow_run.id,
                )
                self._artifact = self._client.create_artifact(made).id
            else:
                self._client.update_artifact(self._artifact, ArtifactUpdate(data=text))
        except Exception as error:  # whatever a server says: the stages' work is worth more than its page
            self.page.problem = one_line(error)[:200]

    def __enter__(self) -> Self:
        self._client.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.page.working = ""
        self.update()
        self._client.__exit__(kind, error, trace)
