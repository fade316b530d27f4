package homeserver

import (
	"net/http"
	"time"

	"github.com/moothall/moothall/appservices/oa"
	"github.com/moothall/moothall/sso"
)

// newOA makes the bridge to OA systems.
func (s *Server) newOA() (*oa.OA, error) {
	client, err := s.cfg.operatorClient()
	if err != nil {
		return nil, err
	}
	return oa.New(oa.Deps{
		Store: s.store, Rooms: s.rooms, Accounts: s.accounts, Profiles: s.profiles, Audit: s.audit, Kit: s.kit, Client: client, Logger: s.log,
		Service: s.groups.Service, Signed: s.oaSigned, ServerName: s.cfg.ServerName, PublicURL: s.cfg.PublicURL, Config: s.cfg.OAConfig(),
	})
}

// oaSigned is oa.Deps.Signed.
func (s *Server) oaSigned(w http.ResponseWriter, r *http.Request, factor bool, maxAge time.Duration) (oa.Visitor, bool) {
	need := sso.Need{Factor: factor}
	if factor {
		need.MaxAge = maxAge
	}
	b, ok := s.sso.RequireBrowser(w, r, need)
	if !ok {
		return oa.Visitor{}, false
	}
	return oa.Visitor{User: b.User, AMR: b.AMR, Session: b.ID[:8]}, true
}
