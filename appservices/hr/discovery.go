package hr

import (
	"net/http"
	"strings"

	"github.com/moothall/moothall/homeserver/web"
)

const (
	configURN = "urn:ietf:params:scim:schemas:core:2.0:ServiceProviderConfig"
	schemaURN = "urn:ietf:params:scim:schemas:core:2.0:Schema"
	typeURN   = "urn:ietf:params:scim:schemas:core:2.0:ResourceType"
)

// serviceProviderConfig says what this server can do. Spec: RFC 7643, section 5.
func (h *HR) serviceProviderConfig(w http.ResponseWriter, _ *http.Request) error {
	yes, no := object{"supported": true}, object{"supported": false}
	return write(w, http.StatusOK, object{
		"schemas": []string{configURN}, "patch": yes, "sort": yes, "etag": yes, "changePassword": no,
		"bulk":   object{"supported": false, "maxOperations": 0, "maxPayloadSize": 0},
		"filter": object{"supported": true, "maxResults": maxResults},
		"authenticationSchemes": []object{{
			"type": "oauthbearertoken", "name": "Bearer token", "description": "A token made by moothall hr token create, or set in the configuration.", "primary": true,
		}},
		"meta": object{"resourceType": "ServiceProviderConfig", "location": h.d.PublicURL + base + "/ServiceProviderConfig"},
	})
}

func allSchemas() []*schema {
	return []*schema{userSchema, groupSchema, enterpriseSchema, employmentSchema}
}

func (h *HR) schemaObject(s *schema) object {
	return object{
		"schemas": []string{schemaURN}, "id": s.ID, "name": s.Name, "description": s.Description, "attributes": s.Attributes,
		"meta": object{"resourceType": "Schema", "location": h.d.PublicURL + base + "/Schemas/" + s.ID},
	}
}

// noFilter refuses a filter where there is nothing to filter. Spec: RFC 7644, section 4.
func noFilter(r *http.Request) error {
	if r.URL.Query().Get("filter") != "" {
		return &scimError{status: http.StatusForbidden, detail: "this list cannot be filtered"}
	}
	return nil
}

func writeAll(w http.ResponseWriter, list []object) error {
	return write(w, http.StatusOK, object{
		"schemas": []string{listURN}, "totalResults": len(list), "startIndex": 1, "itemsPerPage": len(list), "Resources": list,
	})
}

func (h *HR) schemas(w http.ResponseWriter, r *http.Request) error {
	if err := noFilter(r); err != nil {
		return err
	}
	var list []object
	for _, s := range allSchemas() {
		list = append(list, h.schemaObject(s))
	}
	return writeAll(w, list)
}

func (h *HR) schema(w http.ResponseWriter, r *http.Request) error {
	for _, s := range allSchemas() {
		if strings.EqualFold(s.ID, web.PathParam(r, "id")) {
			return write(w, http.StatusOK, h.schemaObject(s))
		}
	}
	return notFound("schema", web.PathParam(r, "id"))
}

func (h *HR) typeObject(k *kind) object {
	o := object{
		"schemas": []string{typeURN}, "id": k.name, "name": k.name, "description": k.core.Description, "endpoint": k.path, "schema": k.core.ID,
		"meta": object{"resourceType": "ResourceType", "location": h.d.PublicURL + base + "/ResourceTypes/" + k.name},
	}
	var extensions []object
	for _, e := range k.extensions {
		extensions = append(extensions, object{"schema": e.ID, "required": false})
	}
	if extensions != nil {
		o["schemaExtensions"] = extensions
	}
	return o
}

func (h *HR) resourceTypes(w http.ResponseWriter, r *http.Request) error {
	if err := noFilter(r); err != nil {
		return err
	}
	return writeAll(w, []object{h.typeObject(users), h.typeObject(groups)})
}

func (h *HR) resourceType(w http.ResponseWriter, r *http.Request) error {
	for _, k := range []*kind{users, groups} {
		if k.name == web.PathParam(r, "id") {
			return write(w, http.StatusOK, h.typeObject(k))
		}
	}
	return notFound("resource type", web.PathParam(r, "id"))
}
