package upstream

import "strings"

// preset fills in what is the same for all users of a known provider. What the configuration sets stays.
func (c *Config) preset() {
	var o OAuth2
	var m Mapping
	authorize := ""
	switch c.Type {
	case TypeWeCom:
		authorize, o, m = wecom(c.OAuth2.BaseURL)
	case TypeDingTalk:
		authorize, o, m = dingtalk(c.OAuth2.BaseURL, c.OAuth2.AnyCompany)
	case TypeFeishu:
		authorize, o, m = feishu(c.OAuth2.BaseURL)
	default:
		return
	}
	or(&c.AuthorizeURL, authorize)
	or(&c.OAuth2.CodeParam, o.CodeParam)
	if len(c.OAuth2.Authorize) == 0 {
		c.OAuth2.Authorize = o.Authorize
	}
	if len(c.OAuth2.Requests) == 0 {
		c.OAuth2.Requests = o.Requests
	}
	or(&c.Mapping.Subject, m.Subject)
	or(&c.Mapping.Localpart, m.Localpart)
	or(&c.Mapping.DisplayName, m.DisplayName)
	or(&c.Mapping.Email, m.Email)
	or(&c.Mapping.EmailVerified, m.EmailVerified)
	or(&c.Mapping.Groups, m.Groups)
}

// hosts picks the public addresses, or one base for all of a private installation.
func hosts(base string, public ...string) []string {
	if base == "" {
		return public
	}
	for i := range public {
		public[i] = strings.TrimRight(base, "/")
	}
	return public
}

// wecom is 企业微信: the code is exchanged for the member's userid with a token that is the application's.
func wecom(base string) (string, OAuth2, Mapping) {
	h := hosts(base, "https://login.work.weixin.qq.com", "https://qyapi.weixin.qq.com")
	page, api := h[0], h[1]
	token := Pair{"access_token", "{{.app.access_token}}"}
	return page + "/wwlogin/sso/login", OAuth2{
			Authorize: []Pair{
				{"login_type", "CorpApp"}, {"appid", "{{.client_id}}"}, {"agentid", "{{.agent_id}}"}, {"redirect_uri", "{{.redirect_uri}}"},
			},
			Requests: []Request{
				{
					Name: "app", URL: api + "/cgi-bin/gettoken", Query: []Pair{{"corpid", "{{.client_id}}"}, {"corpsecret", "{{.client_secret}}"}},
					OK: "errcode", OKValue: "0", Need: "access_token", Expires: "expires_in",
				},
				// Those who are not members of the company have an openid, no userid.
				{Name: "login", URL: api + "/cgi-bin/auth/getuserinfo", Query: []Pair{token, {"code", "{{.code}}"}}, OK: "errcode", OKValue: "0", Need: "userid"},
				{Name: "user", URL: api + "/cgi-bin/user/get", Query: []Pair{token, {"userid", "{{.login.userid}}"}}, OK: "errcode", OKValue: "0"},
			},
		}, Mapping{
			Subject: "{{.login.userid}}", Localpart: "{{slug .login.userid}}", DisplayName: "{{.user.name}}",
			Email: "{{or .user.biz_mail .user.email}}", EmailVerified: "{{if .user.biz_mail}}true{{end}}", Groups: "user.department",
		}
}

// dingtalk is 钉钉: the person's token tells the unionId, the application's token whether that is a member of the company.
func dingtalk(base string, anyCompany bool) (string, OAuth2, Mapping) {
	h := hosts(base, "https://login.dingtalk.com", "https://api.dingtalk.com", "https://oapi.dingtalk.com")
	page, api, old := h[0], h[1], h[2]
	o := OAuth2{
		CodeParam: "authCode",
		Authorize: []Pair{
			{"client_id", "{{.client_id}}"}, {"redirect_uri", "{{.redirect_uri}}"}, {"response_type", "code"}, {"scope", "openid"}, {"prompt", "consent"},
		},
		Requests: []Request{
			{
				Name: "token", URL: api + "/v1.0/oauth2/userAccessToken", Need: "accessToken", JSON: []Pair{
					{"clientId", "{{.client_id}}"}, {"clientSecret", "{{.client_secret}}"}, {"code", "{{.code}}"}, {"grantType", "authorization_code"},
				},
			},
			{Name: "me", URL: api + "/v1.0/contact/users/me", Headers: []Pair{{"x-acs-dingtalk-access-token", "{{.token.accessToken}}"}}, Need: "unionId"},
		},
	}
	m := Mapping{
		Subject: "{{.me.unionId}}", Localpart: `{{slug (localpart .me.email)}}`, DisplayName: "{{.me.nick}}", Email: "{{.me.email}}",
	}
	if anyCompany {
		return page + "/oauth2/auth", o, m
	}
	token := []Pair{{"access_token", "{{.app.accessToken}}"}}
	o.Requests = append(o.Requests,
		Request{
			Name: "app", URL: api + "/v1.0/oauth2/accessToken", Need: "accessToken", Expires: "expireIn",
			JSON: []Pair{{"appKey", "{{.client_id}}"}, {"appSecret", "{{.client_secret}}"}},
		},
		Request{
			Name: "member", URL: old + "/topapi/user/getbyunionid", Query: token, JSON: []Pair{{"unionid", "{{.me.unionId}}"}},
			OK: "errcode", OKValue: "0", Need: "result.userid",
		},
		Request{
			Name: "user", URL: old + "/topapi/v2/user/get", Query: token, JSON: []Pair{{"userid", "{{.member.result.userid}}"}},
			OK: "errcode", OKValue: "0",
		})
	m.Localpart, m.DisplayName = "{{slug .member.result.userid}}", "{{or .user.result.name .me.nick}}"
	m.Email, m.EmailVerified = "{{or .user.result.org_email .me.email}}", "{{if .user.result.org_email}}true{{end}}"
	m.Groups = "user.result.dept_id_list"
	return page + "/oauth2/auth", o, m
}

// feishu is 飞书.
func feishu(base string) (string, OAuth2, Mapping) {
	h := hosts(base, "https://accounts.feishu.cn", "https://open.feishu.cn")
	page, api := h[0], h[1]
	return page + "/open-apis/authen/v1/authorize", OAuth2{
			Authorize: []Pair{
				{"client_id", "{{.client_id}}"}, {"redirect_uri", "{{.redirect_uri}}"}, {"response_type", "code"}, {"scope", "{{.scope}}"},
				{"code_challenge", "{{.code_challenge}}"}, {"code_challenge_method", "S256"},
			},
			Requests: []Request{
				{
					Name: "token", URL: api + "/open-apis/authen/v2/oauth/token", OK: "code", OKValue: "0", Need: "access_token", JSON: []Pair{
						{"grant_type", "authorization_code"}, {"client_id", "{{.client_id}}"}, {"client_secret", "{{.client_secret}}"},
						{"code", "{{.code}}"}, {"redirect_uri", "{{.redirect_uri}}"}, {"code_verifier", "{{.code_verifier}}"},
					},
				},
				{
					Name: "user", URL: api + "/open-apis/authen/v1/user_info", Headers: []Pair{{"Authorization", "Bearer {{.token.access_token}}"}},
					OK: "code", OKValue: "0", Need: "data.union_id",
				},
			},
		}, Mapping{
			Subject: "{{.user.data.union_id}}", Localpart: "{{slug (or .user.data.user_id (localpart .user.data.enterprise_email))}}",
			DisplayName: "{{.user.data.name}}", Email: "{{or .user.data.enterprise_email .user.data.email}}",
			EmailVerified: "{{if .user.data.enterprise_email}}true{{end}}",
		}
}
