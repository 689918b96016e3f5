"""What would be, were there one queue, and nothing took time but what the servers do."""

import dataclasses
import heapq
import itertools


class Ideal:
    """One queue before the servers of a load, first come, first served."""

    def __init__(self, servers):
        self.servers, self.flying = servers, [0] * len(servers)
        self.events, self.order = [], itertools.count()
        self.waiting, self.found = [], []

    def serve(self, groups):
        """The same requests, each as it would have been served. They take as long as they did;
        those that came when others were answered come at once."""
        for group in groups:
            rest = iter(group.requests)
            for request in itertools.islice(rest, group.clients or None):
                self.note(request.sent, request, rest)
        while self.events:
            at, _, request, rest, index = heapq.heappop(self.events)
            if index is None:
                self.arrives(at, dataclasses.replace(request, sent=at), rest)
            else:
                self.ends(at, rest, index)
        return self.found

    def note(self, at, request, rest, index=None):
        heapq.heappush(self.events, (at, next(self.order), request, rest, index))

    def arrives(self, at, request, rest):
        self.found.append(request)
        free = [
            (self.flying[index] / server.weight, index)
            for index, server in enumerate(self.servers)
            if request.model in server.models and self.flying[index] < server.most
        ]
        if free:
            self.begins(at, request, rest, min(free)[1])
        else:
            self.waiting.append((request, rest))

    def begins(self, at, request, rest, index):
        self.flying[index] += 1
        end = at + request.took()
        request.server, request.began, request.done = index, at, end
        self.note(end, request, rest, index)

    def ends(self, at, rest, index):
        self.flying[index] -= 1
        if (following := next(rest, None)) is not None:
            # At this same moment, and behind those who wait.
            self.note(at, following, rest)
        for position, (request, others) in enumerate(self.waiting):
            if request.model in self.servers[index].models:
                del self.waiting[position]
                self.begins(at, request, others, index)
                return
