SwaggerUIBundle({
  url: '/openapi.json',
  domNode: document.getElementById('reference'),
  deepLinking: true,
  displayOperationId: false,
  docExpansion: 'list',
  defaultModelsExpandDepth: 0,
  filter: true,
  tryItOutEnabled: true,
  validatorUrl: null, // nothing is asked elsewhere
  // The paths of the first partners are in the document, and would double the list.
  plugins: [{ statePlugins: { spec: { wrapSelectors: { taggedOperations: original => (state, ...args) => original(state, ...args).map(tag =>
    tag.set('operations', tag.get('operations').filter(operation => !operation.getIn(['operation', 'x-alias-of'])))) } } } }],
})
