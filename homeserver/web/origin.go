package web

import (
	"context"
	"net/netip"
)

// Origin is where a request came from and who makes it.
type Origin struct {
	IP        netip.Addr // the zero Addr: unknown (a Unix socket)
	Agent     string     // User-Agent, as it was sent
	RequestID string
	Identity  *Identity // nil: without an access token
}

// OriginOf tells the origin of the request that a context belongs to; false for contexts of no request.
func OriginOf(ctx context.Context) (Origin, bool) {
	q, _ := ctx.Value(requestKey{}).(*request)
	if q == nil {
		return Origin{}, false
	}
	return Origin{IP: q.ip, Agent: q.agent, RequestID: q.id, Identity: q.identity}, true
}
