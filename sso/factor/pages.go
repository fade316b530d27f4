package factor

import (
	"net/http"

	"github.com/moothall/moothall/homeserver/web"
)

func (f *Factors) from(r *http.Request) From {
	return From{IP: web.ClientIP(r), Agent: r.UserAgent(), Lang: f.Kit.Lang(r)}
}
