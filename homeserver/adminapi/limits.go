package adminapi

import (
	"math"
	"net/http"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

func (a *API) limitRoutes() []web.Route {
	const limit, features = v1 + "/users/{userId}/override_ratelimit", v1 + "/experimental_features/{userId}"
	return []web.Route{
		{Pattern: "GET " + limit, Handler: a.rateLimit},
		{Pattern: "POST " + limit, Rate: web.RateSend, Handler: a.setRateLimit},
		{Pattern: "DELETE " + limit, Rate: web.RateSend, Handler: a.dropRateLimit},
		{Pattern: "POST " + v1 + "/users/{userId}/_allow_cross_signing_replacement_without_uia", Rate: web.RateSend, Handler: a.openKeys},
		{Pattern: "GET " + features, Handler: a.features},
		{Pattern: "PUT " + features, Rate: web.RateSend, Handler: a.setFeatures},
	}
}

// rateLimit handles GET /_synapse/admin/v1/users/{userId}/override_ratelimit: {} where the server's limits hold.
func (a *API) rateLimit(w http.ResponseWriter, r *http.Request) error {
	u, err := a.account(r)
	if err != nil {
		return err
	}
	if u.RatePerSecond == nil || u.RateBurst == nil {
		return empty(w)
	}
	return web.WriteJSON(w, map[string]int64{"messages_per_second": *u.RatePerSecond, "burst_count": *u.RateBurst})
}

// setRateLimit handles POST /_synapse/admin/v1/users/{userId}/override_ratelimit. 0 messages per second lift all limits of the account.
func (a *API) setRateLimit(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadOptionalJSON[struct {
		PerSecond int64 `json:"messages_per_second"`
		Burst     int64 `json:"burst_count"`
	}](r)
	if err != nil {
		return err
	}
	for name, n := range map[string]int64{"messages_per_second": req.PerSecond, "burst_count": req.Burst} {
		if n < 0 || n > math.MaxInt32 {
			return mxerr.InvalidParam("'" + name + "' must be a number of at least 0")
		}
	}
	u, err := a.account(r)
	if err != nil {
		return err
	}
	if err := a.Accounts.SetRateLimit(r.Context(), u.ID, &account.RateLimit{PerSecond: req.PerSecond, Burst: req.Burst}); err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]int64{"messages_per_second": req.PerSecond, "burst_count": req.Burst})
}

// dropRateLimit handles DELETE /_synapse/admin/v1/users/{userId}/override_ratelimit.
func (a *API) dropRateLimit(w http.ResponseWriter, r *http.Request) error {
	u, err := a.account(r)
	if err != nil {
		return err
	}
	if err := a.Accounts.SetRateLimit(r.Context(), u.ID, nil); err != nil {
		return err
	}
	return empty(w)
}

// openKeys handles POST /_synapse/admin/v1/users/{userId}/_allow_cross_signing_replacement_without_uia.
func (a *API) openKeys(w http.ResponseWriter, r *http.Request) error {
	u, err := a.account(r)
	if err != nil {
		return err
	}
	until, err := a.Accounts.OpenKeys(r.Context(), u.ID)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]int64{"updatable_without_uia_before_ms": until})
}

// features handles GET /_synapse/admin/v1/experimental_features/{userId}: no feature here is given to single users.
func (a *API) features(w http.ResponseWriter, r *http.Request) error {
	if _, err := a.account(r); err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]any{"features": struct{}{}})
}

// setFeatures handles PUT /_synapse/admin/v1/experimental_features/{userId}.
func (a *API) setFeatures(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		Features map[string]bool `json:"features"`
	}](r)
	if err != nil {
		return err
	}
	if _, err := a.account(r); err != nil {
		return err
	}
	for name := range req.Features {
		return mxerr.InvalidParam("this server has no feature for single users that is called " + name)
	}
	return empty(w)
}
