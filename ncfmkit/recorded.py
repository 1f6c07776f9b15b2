"""Work of a GPU that is recorded once and then replayed: one launch instead of hundreds."""

from collections.abc import Callable

import torch

from ncfmkit.progress import notice
from ncfmkit.runtime import is_out_of_memory

Tensors = tuple[torch.Tensor, ...]
TensorFunction = Callable[..., Tensors]  # of tensors


class Recorded:
    """A function of tensors whose work on a GPU is recorded as a CUDA graph.

    The first calls run the function as it is: they compile, and make what an optimizer keeps. The next call records it,
    and every later one copies its inputs to where the recorded ones are and replays the recording. The function may
    read and change other tensors, which have to stay where they are. What it reads on the host is read for the last
    time when it is recorded.

    Args:
        function: of tensors on the GPU, to tensors on the GPU; it may not wait for the GPU.
        device: the GPU.
    """

    PLAIN_CALLS = 2

    def __init__(self, function: TensorFunction, device: torch.device):
        self._function, self._device = function, device
        self._plain_calls: float = self.PLAIN_CALLS
        self._stream = torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Tensors = ()
        self._outputs: Tensors = ()

    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        with torch.cuda.device(self._device):  # a graph is replayed on the current one
            return self._call(inputs)

    def _call(self, inputs: Tensors) -> Tensors:
        if self._plain_calls == 0 and self._graph is None:
            self._record(inputs)
        if self._graph is None:
            self._plain_calls -= 1
            return self._plain(inputs)
        for there, value in zip(self._inputs, inputs, strict=True):
            there.copy_(value)
        self._graph.replay()
        return tuple(output.clone() for output in self._outputs)

    def _plain(self, inputs: Tensors) -> Tensors:
        """On the stream that records: autograd goes on summing gradients on the stream where it first did."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = self._function(*inputs)
        current.wait_stream(self._stream)
        return outputs

    def _record(self, inputs: Tensors) -> None:
        graph, self._inputs = torch.cuda.CUDAGraph(), tuple(value.clone() for value in inputs)
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._outputs = self._function(*self._inputs)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._inputs, self._plain_calls = (), float("inf")
            notice("out of memory: steps are not recorded and replayed (slower, same result)")
        else:
            self._graph = graph
