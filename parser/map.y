// The language of 4.6 to 5.2: map and accept. modernize.go translates the tree.

%{
package parser
%}

%union {
	tok  *token
	opt  *option
	opts []*option
	tab  *tableExpr
	vals *valueList
	node node
	how  *oldAction
}

%token <tok> pNL pSTRING pNUMBER pARROW
%token <tok> pACCEPT pALIAS pALL pANY pAS pAUTH pAUTHOPTIONAL pBACKUP pCERTIFICATE
%token <tok> pCOMPRESSION pCONFIG pDB pDELIVER pDNS pDOMAIN pENABLE pEXPIRE pEXTERNAL
%token <tok> pFILE pFOR pFROM pHASH pHOSTNAME pINTERVAL pLIST pLISTEN pLOCAL pMAILDIR pMAP
%token <tok> pMBOX pMDA pNETWORK pON pPLAIN pPORT pQUEUE pREJECT pRELAY pSINGLE pSIZE
%token <tok> pSMTPS pSOURCE pSSL pTAG pTLS pTLSREQUIRE pTO pTYPE pUSER pVIA pVIRTUAL

%type <node> stmt rule listen map
%type <tok>  port kind word_type
%type <opt>  lopt mapopt on from cond target ropt vopt user ending
%type <opts> lopts mapopts mapline conds condlist ropts vopts endings
%type <tab>  mapref name
%type <vals> list
%type <how>  what

%start line

%%

line:
	stmt pNL { accepted(maplex, $1) }
	;

stmt:
	rule
	| listen
	| map
	| pHOSTNAME pSTRING             { $$ = setting("hostname", $2) }
	| pQUEUE pINTERVAL pNUMBER      { $$ = setting("queue interval", $3) }
	| pQUEUE pINTERVAL pSTRING      { $$ = setting("queue interval", $3) }
	| pQUEUE pINTERVAL pNUMBER pSTRING { $$ = setting("queue interval", $3, $4) }
	| pQUEUE pCOMPRESSION           { $$ = setting("queue compression") }
	| pQUEUE pCOMPRESSION pSTRING   { $$ = setting("queue compression") }
	| pEXPIRE pSTRING               { $$ = setting("expire", $2) }
	| pSIZE pSTRING                 { $$ = setting("size", $2) }
	| pSIZE pNUMBER                 { $$ = setting("size", $2) }
	;

nls:
	/* none */
	| nls pNL
	;

listen:
	pLISTEN pON pSTRING lopts       { $$ = &listenStmt{on: $3, opts: $4} }
	;

lopts:
	/* none */                      { $$ = nil }
	| lopts lopt                    { $$ = append($1, $2) }
	;

lopt:
	pPORT port                      { $$ = opt($1, $2) }
	| pTLS                          { $$ = opt($1, nil) }
	| pSMTPS                        { $$ = opt($1, nil) }
	| pTLSREQUIRE                   { $$ = opt($1, nil) }
	| pSSL                          { $$ = opt($1, nil) }
	| pCERTIFICATE pSTRING          { $$ = opt($1, $2) }
	| pENABLE pAUTH                 { $$ = opt($1, nil) }
	| pAUTH                         { $$ = opt($1, nil) }
	| pAUTHOPTIONAL                 { $$ = opt($1, nil) }
	| pTAG pSTRING                  { $$ = opt($1, $2) }
	;

port: pSTRING | pNUMBER | pSMTPS ;

map:
	pMAP pSTRING '{' nls mapopts nls '}' { $$ = &mapStmt{name: $2, opts: $5} }
	| pMAP pSTRING mapline          { $$ = &mapStmt{name: $2, opts: $3} }
	| pMAP pSTRING pSTRING          { $$ = &mapStmt{name: $2, opts: one(mapFile($3))} }
	;

mapopts:
	mapopt                          { $$ = one($1) }
	| mapopts nls mapopt            { $$ = append($1, $3) }
	| mapopts ',' nls mapopt        { $$ = append($1, $4) }
	;

mapline:
	mapopt                          { $$ = one($1) }
	| mapline mapopt                { $$ = append($1, $2) }
	;

mapopt:
	pSOURCE kind                    { $$ = optSub($1, $2) }
	| pSOURCE kind pSTRING          { $$ = optSub($1, $2); $$.arg = $3 }
	| pTYPE word_type               { $$ = opt($1, $2) }
	| pCONFIG pSTRING               { $$ = opt($1, $2) }
	;

kind: pDB | pPLAIN | pFILE | pDNS | pEXTERNAL | pSTRING ;

word_type: pSINGLE | pLIST | pHASH | pDB | pFILE ;

rule:
	pACCEPT on from pFOR conds what endings
	                                { $$ = newMapRule(false, $2, $3, $5, $6, $7) }
	| pREJECT on from pFOR conds what endings
	                                { $$ = newMapRule(true, $2, $3, $5, $6, $7) }
	;

on:
	/* none */                      { $$ = nil }
	| pON pSTRING                   { $$ = opt($1, $2) }
	;

from:
	/* none */                      { $$ = nil }
	| pFROM pALL                    { $$ = optSub($1, $2) }
	| pFROM pANY                    { $$ = optSub($1, $2) }
	| pFROM pLOCAL                  { $$ = optSub($1, $2) }
	| pFROM mapref                  { $$ = optTable($1, $2); $$.sub = "source" }
	;

mapref:
	pSTRING                         { $$ = &tableExpr{pos: $1.pos, one: $1} }
	| '(' nls list nls ')'          { $$ = &tableExpr{pos: $3.pos(), values: $3} }
	| '{' nls list nls '}'          { $$ = &tableExpr{pos: $3.pos(), values: $3} }
	| pMAP pSTRING                  { $$ = &tableExpr{pos: $2.pos, ref: $2, isMap: true} }
	| '<' pSTRING '>'               { $$ = &tableExpr{pos: $2.pos, ref: $2} }
	;

list:
	pSTRING                         { $$ = newValues($1) }
	| list nls pSTRING              { $$ = $1.add($3) }
	| list ',' nls pSTRING          { $$ = $1.add($4) }
	;

name:
	pSTRING                         { $$ = &tableExpr{pos: $1.pos, ref: $1, isMap: true} }
	| pMAP pSTRING                  { $$ = &tableExpr{pos: $2.pos, ref: $2, isMap: true} }
	| '<' pSTRING '>'               { $$ = &tableExpr{pos: $2.pos, ref: $2} }
	;

conds:
	cond                            { $$ = one($1) }
	| '{' nls condlist nls '}'      { $$ = $3 }
	;

condlist:
	cond                            { $$ = one($1) }
	| condlist nls cond             { $$ = append($1, $3) }
	| condlist ',' nls cond         { $$ = append($1, $4) }
	;

cond:
	target
	| target pALIAS name            { $$ = $1; $$.alias = $3 }
	| pVIRTUAL name                 { $$ = optTable($1, $2); $$.sub = $1.text }
	| pNETWORK pSTRING              { $$ = opt($1, $2); $$.sub = $1.text }
	;

target:
	pALL                            { $$ = optSub($1, $1) }
	| pANY                          { $$ = optSub($1, $1) }
	| pLOCAL                        { $$ = optSub($1, $1) }
	| pDOMAIN mapref                { $$ = optTable($1, $2); $$.sub = $1.text }
	| pSTRING                       { $$ = &option{pos: $1.pos, sub: "bare", arg: $1} }
	;

what:
	/* none */                      { $$ = nil }
	| pDELIVER pTO pMBOX            { $$ = newOld($3, nil, nil) }
	| pDELIVER pTO pMAILDIR user    { $$ = newOld($3, nil, some($4)) }
	| pDELIVER pTO pMAILDIR pSTRING user { $$ = newOld($3, $4, some($5)) }
	| pDELIVER pTO pMDA pSTRING user { $$ = newOld($3, $4, some($5)) }
	| pRELAY ropts                  { $$ = newOld($1, nil, $2) }
	| pRELAY pVIA pSTRING vopts     { $$ = newOld($2, $3, $4) }
	;

user:
	/* none */                      { $$ = nil }
	| pUSER pSTRING                 { $$ = opt($1, $2) }
	;

ropts:
	/* none */                      { $$ = nil }
	| ropts ropt                    { $$ = append($1, $2) }
	;

ropt:
	pBACKUP                         { $$ = opt($1, nil) }
	| pBACKUP pSTRING               { $$ = opt($1, $2) }
	| pAS pSTRING                   { $$ = opt($1, $2) }
	;

vopts:
	/* none */                      { $$ = nil }
	| vopts vopt                    { $$ = append($1, $2) }
	;

vopt:
	pPORT port                      { $$ = opt($1, $2) }
	| pTLS                          { $$ = opt($1, nil) }
	| pSMTPS                        { $$ = opt($1, nil) }
	| pSSL                          { $$ = opt($1, nil) }
	| pCERTIFICATE pSTRING          { $$ = opt($1, $2) }
	| pENABLE pAUTH                 { $$ = opt($1, nil) }
	| pAUTH name                    { $$ = optTable($1, $2) }
	| pAS pSTRING                   { $$ = opt($1, $2) }
	;

endings:
	/* none */                      { $$ = nil }
	| endings ending                { $$ = append($1, $2) }
	;

ending:
	pTAG pSTRING                    { $$ = opt($1, $2) }
	| pEXPIRE pSTRING               { $$ = opt($1, $2) }
	;
